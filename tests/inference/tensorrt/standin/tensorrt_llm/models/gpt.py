"""TensorRT-LLM's GPT as far as a standard model needs it: learned positions, GELU, no rotation, no experts."""

from .._utils import pad_vocab_size
from ..layers import MLP, Attention, AttentionMaskType, ColumnLinear, Embedding, KeyValueCacheParams, LayerNorm
from ..module import Module, ModuleList
from .modeling_utils import DecoderModelForCausalLM, PretrainedConfig


class GPTConfig(PretrainedConfig):
    def __init__(
        self,
        *,
        gpt_variant="gpt2",
        bias=True,
        q_scaling=1.0,
        embedding_scale=None,
        apply_query_key_layer_scaling=False,
        rotary_pct=1.0,
        rotary_base=10000.0,
        rotary_scaling=None,
        inner_layernorm=False,
        norm_before_bmm1=False,
        moe=None,
        **kwargs,
    ):
        self.gpt_variant, self.bias, self.q_scaling = gpt_variant, bias, q_scaling
        super().__init__(**kwargs)


class GPTDecoderLayer(Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        mapping = config.mapping
        shared = {"bias": config.bias, "dtype": config.dtype, "tp_group": mapping.tp_group, "tp_size": mapping.tp_size}
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)
        self.attention = Attention(
            local_layer_idx=layer_idx,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            attention_head_size=config.head_size,
            attention_mask_type=AttentionMaskType.causal,
            q_scaling=config.q_scaling,
            **shared,
        )
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act, **shared)
        self.post_layernorm = LayerNorm(config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)

    def forward(self, x, **context):
        attended, present = self.attention(self.input_layernorm(x), **context)
        x = x + attended
        return x + self.mlp(self.post_layernorm(x)), present


class GPTModel(Module):
    def __init__(self, config):
        super().__init__()
        self.vocab_embedding = Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size, dtype=config.dtype)
        self.layers = ModuleList([GPTDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.ln_f = LayerNorm(config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)

    def forward(self, input_ids, position_ids, use_cache, attention_mask, kv_cache_params, attention_params):
        x, presents = self.vocab_embedding(input_ids) + self.position_embedding(position_ids), []
        for layer, past in zip(self.layers, kv_cache_params.past_key_value, strict=True):
            own = KeyValueCacheParams([past], kv_cache_params.host_past_key_value_lengths)
            x, present = layer(x, use_cache=use_cache, kv_cache_params=own, attention_params=attention_params)
            presents.append(present)
        return self.ln_f(x), presents


class GPTForCausalLM(DecoderModelForCausalLM):
    config_class = GPTConfig

    def __init__(self, config):
        mapping = config.mapping
        lm_head = ColumnLinear(
            config.hidden_size,
            pad_vocab_size(config.vocab_size, mapping.tp_size),
            bias=False,
            dtype=config.dtype,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
        )
        super().__init__(config, GPTModel(config), lm_head)
