"""Kraken, parallel and ladder as TensorRT-LLM 0.12.0 models; standard is its own GPTForCausalLM.

A definition is run once, to record a graph. There is no wait to place: TensorRT runs branches of the graph that do not
depend on each other on auxiliary streams (build.py), so overlap is where no edge leads. Kraken's AllReduce of a layer's
outputs and the next layer's attention are such branches; they meet in front of the MLP.

Activations have padding removed: x_RD has a row for each token of the batch; x_RnD holds the streams of a rank's n
splits side by side. Names of modules are those of krakenlm.inference.tensorrt.layout.
"""

import copy
from collections.abc import Sequence

from tensorrt_llm._utils import pad_vocab_size
from tensorrt_llm.functional import AllReduceStrategy, Tensor, allreduce, concat, gelu, split
from tensorrt_llm.layers import (
    MLP,
    Attention,
    AttentionMaskType,
    AttentionParams,
    ColumnLinear,
    Embedding,
    KeyValueCacheParams,
    LayerNorm,
    RowLinear,
)
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models import MODEL_MAP
from tensorrt_llm.models.modeling_utils import DecoderModelForCausalLM, PretrainedConfig
from tensorrt_llm.module import Module, ModuleList


class Config(PretrainedConfig):
    """PretrainedConfig with what these models add. Heads count over all ranks and splits; `hidden_size` and
    `intermediate_size` are a split's. The true head size is head_size * q_scaling ** 2 (krakenlm.inference.shards).
    """

    def __init__(self, *, q_scaling: float, bias: bool, degree: int = 1, **kwargs) -> None:
        self.q_scaling, self.bias, self.degree = q_scaling, bias, degree
        super().__init__(**kwargs)

    @property
    def heads(self) -> int:
        """Attention heads on one rank, of all its splits."""
        return self.num_attention_heads // self.mapping.tp_size

    @property
    def splits(self) -> int:
        """A Kraken's splits on one rank."""
        return self.degree // self.mapping.tp_size


class Unprojected(Module):
    """In place of the products around an attention: the layer makes them itself."""

    def forward(self, x: Tensor, *lora, **more) -> Tensor:
        return x


def attention_alone(config: Config, layer: int) -> Attention:
    """Causal attention with its KV cache over this rank's heads: (R, 3 H K), q, k and v side by side, to (R, H K).

    It knows of no other rank. Positions are in the embedding, which is what it takes them for by default.
    """
    heads = {"num_attention_heads": config.heads, "attention_head_size": config.head_size}
    kind = {"attention_mask_type": AttentionMaskType.causal, "q_scaling": config.q_scaling}
    shape = {"hidden_size": config.hidden_size, "bias": False, "dtype": config.dtype}
    attention = Attention(local_layer_idx=layer, **heads, **kind, **shape)
    attention.qkv, attention.dense = Unprojected(), Unprojected()
    return attention


def norm(config: Config) -> LayerNorm:
    return LayerNorm(normalized_shape=config.hidden_size, eps=config.norm_epsilon, dtype=config.dtype)


def vocabulary_linear(config: Config) -> ColumnLinear:
    """This rank's part of the vocabulary; the logits are gathered."""
    mapping = config.mapping
    return ColumnLinear(
        config.hidden_size,
        pad_vocab_size(config.vocab_size, mapping.tp_size),
        bias=False,
        dtype=config.dtype,
        tp_group=mapping.tp_group,
        tp_size=mapping.tp_size,
        gather_output=True,
    )


def all_reduce(x: Tensor, mapping: Mapping, strategy: AllReduceStrategy = AllReduceStrategy.AUTO) -> Tensor:
    """Sum over the ranks, as a branch of its own."""
    return x if mapping.tp_size == 1 else allreduce(x, mapping.tp_group, strategy=strategy)


def last(x: Tensor) -> int:
    return x.ndim() - 1


class Decoder(Module):
    """Embeddings, layers, last LayerNorm: what DecoderModelForCausalLM calls a transformer.

    A subclass names its layer's class, and `run` takes x_RD through the layers.
    """

    layer: type[Module]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vocab_embedding = Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size, dtype=config.dtype)
        self.layers = ModuleList([self.layer(config, index) for index in range(config.num_hidden_layers)])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        use_cache: bool = False,
        attention_mask: Tensor | None = None,
        kv_cache_params: KeyValueCacheParams | None = None,
        attention_params: AttentionParams | None = None,
    ):
        """The stream (R, D), for Kraken (R, n D), and with a cache the layers' new keys and values."""
        x_RD = self.vocab_embedding(input_ids) + self.position_embedding(position_ids)
        kv_cache_params.fill_none_tensor_list(len(self.layers))
        shared = {"use_cache": use_cache, "attention_params": attention_params}
        contexts = [
            {"kv_cache_params": of_layer(kv_cache_params, past), **shared} for past in kv_cache_params.past_key_value
        ]
        x_RD, presents = self.run(x_RD, contexts)
        return (x_RD, tuple(presents)) if use_cache else x_RD

    def run(self, x_RD: Tensor, contexts: Sequence[dict]) -> tuple[Tensor, list]:
        """The stream behind the last layer and every layer's new keys and values; each architecture wires its own."""
        raise NotImplementedError


def of_layer(params: KeyValueCacheParams, past: Tensor) -> KeyValueCacheParams:
    """The cache's parameters, whatever else they hold, with one layer's keys and values alone."""
    own = copy.copy(params)
    own.past_key_value = [past]
    return own


def attended(attention: Attention, x: Tensor, context: dict) -> tuple[Tensor, Tensor | None]:
    """Attention's result and, with a cache, the layer's new keys and values."""
    result = attention(x, **context)
    return result if context["use_cache"] else (result, None)


def parts(x: Tensor, n: int) -> Sequence[Tensor]:
    """`x` in n equal parts along its last dimension."""
    return [x] if n == 1 else split(x, x.size(last(x)) // n, dim=last(x))


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors joined along their last dimension."""
    return tensors[0] if len(tensors) == 1 else concat(tensors, dim=last(tensors[0]))


def total(tensors: Sequence[Tensor]) -> Tensor:
    first, *others = tensors
    for other in others:
        first = first + other
    return first


class KrakenSplit(Module):
    """The weights of one split in one layer: a narrow decoder layer, whole on its rank."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, rows = config.hidden_size, config.heads // config.splits * config.head_size
        own = {"bias": config.bias, "dtype": config.dtype}
        self.input_layernorm = norm(config)
        self.qkv = ColumnLinear(width, 3 * rows, **own)
        self.dense = RowLinear(rows, width, **own)
        self.post_layernorm = norm(config)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, **own)


class KrakenLayer(Module):
    """One layer of this rank's splits (arXiv 2408.07802; krakenlm.models.kraken). No collective is in it."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.splits = ModuleList([KrakenSplit(config) for _ in range(config.splits)])
        self.attention = attention_alone(config, index)

    def forward(self, streams: Sequence[Tensor], total_RD: Tensor | None, context: dict):
        """(streams, present): h_i = x_i + a_i; x_i' = h_i + MLP_i(LN2_i(S + a_i)), with S the sum of all splits' x; in
        the first layer, where every x_i is the embedding and there is no S, the MLP reads h_i.
        """
        qkv = [own.qkv(own.input_layernorm(x_RD)) for own, x_RD in zip(self.splits, streams, strict=True)]
        attended_RK, present = attended(self.attention, by_kind(qkv), context)
        outputs = []
        for own, x_RD, part_RK in zip(self.splits, streams, parts(attended_RK, len(qkv)), strict=True):
            a_RD = own.dense(part_RK)
            h_RD = x_RD + a_RD
            mlp_input_RD = h_RD if total_RD is None else total_RD + a_RD
            outputs.append(h_RD + own.mlp(own.post_layernorm(mlp_input_RD)))
        return outputs, present


def by_kind(qkv: Sequence[Tensor]) -> Tensor:
    """Each split's q, k and v side by side to all splits' q, k and v: one attention works on every head of the rank."""
    if len(qkv) == 1:
        return qkv[0]
    return side_by_side([part for kind in zip(*(parts(own, 3) for own in qkv), strict=True) for part in kind])


class KrakenDecoder(Decoder):
    """The splits of one rank: decoders of their own but for one AllReduce a layer. The streams end side by side."""

    layer = KrakenLayer

    def run(self, x_RD: Tensor, contexts: Sequence[dict]) -> tuple[Tensor, list]:
        streams, presents, total_RD = [x_RD] * self.config.splits, [], None
        for index, (layer, context) in enumerate(zip(self.layers, contexts, strict=True)):
            streams, present = layer(streams, total_RD, context)
            presents.append(present)
            if index + 1 < len(self.layers):
                total_RD = all_reduce(total(streams), self.config.mapping)
        return side_by_side(streams), presents


class KrakenHead(Module):
    """What follows the last layer, on the rows alone whose logits are wanted: LN_f(W [x_1; ...; x_N]) to logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        mapping = config.mapping
        self.merge = RowLinear(
            config.degree * config.hidden_size,
            config.hidden_size,
            bias=config.bias,
            dtype=config.dtype,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
        )
        self.ln_f = norm(config)
        self.linear = vocabulary_linear(config)

    def forward(self, x_RnD: Tensor) -> Tensor:
        return self.linear(self.ln_f(self.merge(x_RnD)))


class ParallelLayer(Module):
    """This rank's part of Attn(LN(x)) + MLP(LN(x)), with one product in and one product out."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        mapping, rows = config.mapping, config.num_attention_heads * config.head_size
        shared = {"bias": config.bias, "dtype": config.dtype, "tp_group": mapping.tp_group, "tp_size": mapping.tp_size}
        self.sections = [3 * rows // mapping.tp_size, config.intermediate_size // mapping.tp_size]
        self.input_layernorm = norm(config)
        self.qkv_up = ColumnLinear(
            config.hidden_size, 3 * rows + config.intermediate_size, gather_output=False, **shared
        )
        self.attention = attention_alone(config, index)
        self.out = RowLinear(rows + config.intermediate_size, config.hidden_size, **shared)

    def forward(self, x_RD: Tensor, context: dict):
        """(x', present). The AllReduce is in `out`, and nothing runs beside it."""
        qkv_up = self.qkv_up(self.input_layernorm(x_RD))
        qkv, up = split(qkv_up, self.sections, dim=last(qkv_up))
        attended_RK, present = attended(self.attention, qkv, context)
        return x_RD + self.out(side_by_side([attended_RK, gelu(up)])), present


class ParallelDecoder(Decoder):
    layer = ParallelLayer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ln_f = norm(config)

    def run(self, x_RD: Tensor, contexts: Sequence[dict]) -> tuple[Tensor, list]:
        presents = []
        for layer, context in zip(self.layers, contexts, strict=True):
            x_RD, present = layer(x_RD, context)
            presents.append(present)
        return self.ln_f(x_RD), presents


class LadderLayer(Module):
    """The weights of a standard layer, split over the ranks; results are parts of a sum that the decoder makes."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        mapping, rows = config.mapping, config.num_attention_heads * config.head_size
        # Without a group a layer is split over ranks and sums nothing.
        shared = {"bias": config.bias, "dtype": config.dtype, "tp_size": mapping.tp_size}
        self.input_layernorm = norm(config)
        self.attention = attention_alone(config, index)
        self.attention.qkv = ColumnLinear(config.hidden_size, 3 * rows, gather_output=False, **shared)
        self.attention.dense = RowLinear(rows, config.hidden_size, **shared)
        self.post_layernorm = norm(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act, **shared)


class LadderDecoder(Decoder):
    """Ladder Residual (arXiv 2501.06589): both AllReduces of a layer run under the next block.

    Two of them can be under way at once, and TensorRT-LLM's own AllReduce kernels share one workspace. NCCL orders
    what one communicator does.
    """

    layer = LadderLayer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ln_f = norm(config)

    def run(self, x_RD: Tensor, contexts: Sequence[dict]) -> tuple[Tensor, list]:
        mapping, presents, attended_RD, fed_RD = self.config.mapping, [], None, None
        for layer, context in zip(self.layers, contexts, strict=True):
            if attended_RD is not None:
                x_RD = x_RD + attended_RD
            part_RD, present = attended(layer.attention, layer.input_layernorm(x_RD), context)
            presents.append(present)
            attended_RD = all_reduce(part_RD, mapping, AllReduceStrategy.NCCL)
            if fed_RD is not None:
                x_RD = x_RD + fed_RD
            fed_RD = all_reduce(layer.mlp(layer.post_layernorm(x_RD)), mapping, AllReduceStrategy.NCCL)
        return self.ln_f(x_RD + attended_RD + fed_RD), presents


class KrakenForCausalLM(DecoderModelForCausalLM):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, KrakenDecoder(config), KrakenHead(config))


class ParallelForCausalLM(DecoderModelForCausalLM):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, ParallelDecoder(config), vocabulary_linear(config))


class LadderForCausalLM(DecoderModelForCausalLM):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, LadderDecoder(config), vocabulary_linear(config))


def register() -> None:
    """Make TensorRT-LLM know the classes by the names in config.json. It reads them when it builds and when it runs an
    engine; its own `trtllm-build --model_cls_name` imports a class and never registers it (its issue 2430).
    """
    MODEL_MAP["KrakenlmKrakenForCausalLM"] = KrakenForCausalLM
    MODEL_MAP["KrakenlmParallelForCausalLM"] = ParallelForCausalLM
    MODEL_MAP["KrakenlmLadderForCausalLM"] = LadderForCausalLM
