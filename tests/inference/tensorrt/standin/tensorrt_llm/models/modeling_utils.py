import copy

from ..functional import PositionEmbeddingType, gather_last_token_logits
from ..mapping import Mapping
from ..module import Module


class QuantConfig:
    def to_dict(self):
        return {"quant_algo": None}

    @classmethod
    def from_dict(cls, config):
        return cls()


class PretrainedConfig:
    def __init__(
        self,
        *,
        architecture,
        dtype,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        vocab_size=None,
        hidden_act="gelu",
        logits_dtype="float32",
        norm_epsilon=1e-5,
        position_embedding_type=PositionEmbeddingType.learned_absolute,
        max_position_embeddings=None,
        num_key_value_heads=None,
        intermediate_size=None,
        mapping=None,
        quantization=None,
        use_parallel_embedding=False,
        embedding_sharding_dim=0,
        share_embedding_table=False,
        head_size=None,
        qk_layernorm=False,
        **kwargs,
    ):
        self.architecture, self.dtype, self.vocab_size = architecture, dtype, vocab_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.hidden_act = num_attention_heads, hidden_act
        self.logits_dtype, self.norm_epsilon = logits_dtype, norm_epsilon
        if isinstance(position_embedding_type, str):
            position_embedding_type = PositionEmbeddingType.from_string(position_embedding_type)
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = max_position_embeddings
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.intermediate_size = hidden_size * 4 if intermediate_size is None else intermediate_size
        self.mapping = Mapping.from_dict(mapping) if isinstance(mapping, dict) else mapping or Mapping()
        self.quantization = QuantConfig()
        self.use_parallel_embedding, self.embedding_sharding_dim = use_parallel_embedding, embedding_sharding_dim
        self.share_embedding_table, self.qk_layernorm = share_embedding_table, qk_layernorm
        self.head_size = hidden_size // num_attention_heads if head_size is None else head_size
        for key, value in kwargs.items():
            setattr(self, key, value)

    @classmethod
    def from_dict(cls, config):
        from . import MODEL_MAP

        return getattr(MODEL_MAP[config["architecture"]], "config_class", cls)(**config)

    def to_dict(self):
        output = copy.deepcopy(self.__dict__)
        output["position_embedding_type"] = str(self.position_embedding_type)
        output["mapping"] = self.mapping.to_dict()
        output["mapping"].pop("rank")
        output["quantization"] = self.quantization.to_dict()
        return output

    def set_rank(self, rank):
        self.mapping = Mapping(self.mapping.world_size, rank, tp_size=self.mapping.tp_size)


class PretrainedModel(Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def load(self, weights, from_pruned=False):
        parameters = dict(self.named_parameters())
        assert parameters.keys() == weights.keys(), sorted(parameters.keys() ^ weights.keys())
        for name, parameter in parameters.items():
            parameter.value = weights[name]


class DecoderModelForCausalLM(PretrainedModel):
    def __init__(self, config, transformer, lm_head):
        super().__init__(config)
        self.transformer, self.lm_head = transformer, lm_head

    def forward(
        self,
        input_ids,
        position_ids=None,
        use_cache=False,
        last_token_ids=None,
        attention_mask=None,
        kv_cache_params=None,
        attention_params=None,
        hidden_states=None,
        prompt_embedding_table=None,
        prompt_tasks=None,
        prompt_vocab_size=None,
        lora_params=None,
        spec_decoding_params=None,
    ):
        hidden_states, presents = self.transformer.forward(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=use_cache,
            attention_mask=attention_mask,
            kv_cache_params=kv_cache_params,
            attention_params=attention_params,
        )
        lm_logits = self.lm_head(gather_last_token_logits(hidden_states, last_token_ids, True))
        lm_logits.mark_output("logits", self.config.logits_dtype)
        for index, present in enumerate(presents):
            present.mark_output(f"present_key_value_{index}", self.config.dtype)
        return lm_logits, presents, hidden_states
