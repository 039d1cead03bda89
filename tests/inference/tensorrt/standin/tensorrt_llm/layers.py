"""Layers with the parameters of the real ones."""

import torch

from .functional import (
    ACT2FN,
    AttentionMaskType,
    LayerNormType,
    PositionEmbeddingType,
    Tensor,
    allgather,
    allreduce,
    current_rank,
    embedding,
    layer_norm,
    matmul,
)
from .module import Module
from .parameter import Parameter
from .quantization import QuantMode

# Prefill's: MHARunner::fmha_supported; decode's: MMHA_SUPPORTED_HEAD_SIZES (../../signatures.json says where).
PREFILL_HEAD_SIZES = (32, 40, 64, 80, 96, 104, 128, 160, 192, 256)
DECODE_HEAD_SIZES = (32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256)


class LinearBase(Module):
    def __init__(self, local_in_features, local_out_features, bias, dtype, tp_group, tp_size):
        super().__init__()
        self.weight = Parameter(shape=(local_out_features, local_in_features), dtype=dtype)
        if bias:
            self.bias = Parameter(shape=(local_out_features,), dtype=dtype)
        else:
            self.register_parameter("bias", None)
        self.tp_group, self.tp_size = tp_group, tp_size

    def forward(self, x, lora_runtime_params=None, lora_hidden_state=None, **kwargs):
        assert lora_runtime_params is None
        assert lora_hidden_state is None
        return self.collect_and_bias(matmul(x, self.weight.value, transb=True), **kwargs)

    def biased(self, x):
        return x if self.bias is None else Tensor(x.value + self.bias.value.value, x.after)

    def collects(self):
        return self.tp_size > 1 and self.tp_group is not None


class ColumnLinear(LinearBase):
    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        dtype=None,
        tp_group=None,
        tp_size=1,
        gather_output=True,
        share_weight=None,
        strict_dtype=False,
        pad_lda=0,
        prefer_managed_weight=True,
        is_qkv=False,
    ):
        assert out_features % tp_size == 0
        super().__init__(in_features, out_features // tp_size, bias, dtype, tp_group, tp_size)
        self.gather_output = gather_output

    def collect_and_bias(self, x, **kwargs):
        x = self.biased(x)
        return allgather(x, self.tp_group, gather_dim=-1) if self.gather_output and self.collects() else x


class RowLinear(LinearBase):
    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        dtype=None,
        tp_group=None,
        tp_size=1,
        strict_dtype=False,
        pad_lda=0,
        prefer_managed_weight=True,
    ):
        assert in_features % tp_size == 0
        super().__init__(in_features // tp_size, out_features, bias, dtype, tp_group, tp_size)

    def collect_and_bias(self, x, reduce_fusion_params=None):
        return self.biased(allreduce(x, self.tp_group) if self.collects() else x)


class Embedding(Module):
    def __init__(
        self, num_embeddings, embedding_dim, dtype=None, tp_size=1, tp_group=None, sharding_dim=0, tp_rank=None
    ):
        super().__init__()
        assert tp_size == 1
        self.weight = Parameter(shape=(num_embeddings, embedding_dim), dtype=dtype)

    def forward(self, x):
        return embedding(x, self.weight.value)


class LayerNorm(Module):
    def __init__(self, normalized_shape, eps=1e-05, elementwise_affine=True, bias=True, dtype=None):
        super().__init__()
        assert elementwise_affine
        assert bias
        self.normalized_shape, self.eps = (normalized_shape,), eps
        self.weight = Parameter(shape=self.normalized_shape, dtype=dtype)
        self.bias = Parameter(shape=self.normalized_shape, dtype=dtype)

    def forward(self, x):
        return layer_norm(x, self.normalized_shape, self.weight.value, self.bias.value, self.eps)


class MLP(Module):
    def __init__(
        self,
        hidden_size,
        ffn_hidden_size,
        hidden_act,
        bias=True,
        dtype=None,
        tp_group=None,
        tp_size=1,
        quant_mode=QuantMode(0),  # noqa: B008
        inner_layernorm=False,
        eps=1e-05,
    ):
        super().__init__()
        assert not inner_layernorm
        shared = {"bias": bias, "dtype": dtype, "tp_group": tp_group, "tp_size": tp_size}
        self.fc = ColumnLinear(hidden_size, ffn_hidden_size, gather_output=False, **shared)
        self.proj = RowLinear(ffn_hidden_size, hidden_size, **shared)
        self.act = ACT2FN[hidden_act]

    def forward(self, hidden_states, lora_layer_params=None, gegelu_limit=None):
        return self.proj(self.act(self.fc(hidden_states)))


class AttentionParams:
    def __init__(
        self,
        sequence_length=None,
        context_lengths=None,
        host_context_lengths=None,
        max_context_length=None,
        host_request_types=None,
        encoder_input_lengths=None,
        encoder_max_input_length=None,
        host_runtime_perf_knobs=None,
    ):
        self.sequence_length, self.context_lengths = sequence_length, context_lengths
        self.host_context_lengths, self.max_context_length = host_context_lengths, max_context_length
        self.host_request_types, self.host_runtime_perf_knobs = host_request_types, host_runtime_perf_knobs


class KeyValueCacheParams:
    def __init__(
        self,
        past_key_value=None,
        host_past_key_value_lengths=None,
        host_max_attention_window_sizes=None,
        host_sink_token_length=None,
        kv_cache_block_offsets=None,
        host_kv_cache_block_offsets=None,
        host_kv_cache_pool_pointers=None,
        cache_indirection=None,
        past_key_value_length=None,
        cross_kv_cache_block_offsets=None,
        host_cross_kv_cache_block_offsets=None,
        host_cross_kv_cache_pool_pointers=None,
    ):
        self.past_key_value, self.host_past_key_value_lengths = past_key_value, host_past_key_value_lengths
        self.host_max_attention_window_sizes = host_max_attention_window_sizes
        self.host_sink_token_length, self.cache_indirection = host_sink_token_length, cache_indirection
        self.kv_cache_block_offsets = kv_cache_block_offsets
        self.host_kv_cache_block_offsets = host_kv_cache_block_offsets
        self.host_kv_cache_pool_pointers = host_kv_cache_pool_pointers

    def fill_none_tensor_list(self, list_size):
        if self.past_key_value is None:
            self.past_key_value = (None,) * list_size


class Attention(Module):
    def __init__(
        self,
        *,
        local_layer_idx,
        hidden_size,
        num_attention_heads,
        num_kv_heads=None,
        max_position_embeddings=1024,
        num_layers=1,
        apply_query_key_layer_scaling=False,
        attention_head_size=None,
        qk_layernorm=False,
        layernorm_type=LayerNormType.LayerNorm,
        inner_layernorm=False,
        eps=1e-05,
        attention_mask_type=AttentionMaskType.padding,
        bias=True,
        dtype=None,
        position_embedding_type=PositionEmbeddingType.learned_absolute,
        rotary_embedding_base=10000.0,
        rotary_embedding_scaling=None,
        rotary_embedding_percentage=1.0,
        rope_scaling_short_factors=None,
        rope_scaling_long_factors=None,
        rope_scaling_short_mscale=None,
        rope_scaling_long_mscale=None,
        original_max_position_embeddings=1024,
        tp_group=None,
        tp_size=1,
        tp_rank=0,
        quant_mode=QuantMode(0),  # noqa: B008
        q_scaling=1.0,
        cross_attention=False,
        relative_attention=False,
        max_distance=0,
        num_buckets=0,
        dense_bias=None,
        clip_qkv=None,
        alibi_bias_max=8,
        skip_cross_qkv=False,
        max_attn_value=0.0,
        block_sparse_params=None,
        use_implicit_relative_attention=False,
        reorder=False,
    ):
        super().__init__()
        size = hidden_size // num_attention_heads if attention_head_size is None else attention_head_size
        if size not in PREFILL_HEAD_SIZES or size not in DECODE_HEAD_SIZES:
            raise ValueError(f"unsupported head_size {size}")
        assert num_attention_heads % tp_size == 0
        assert attention_mask_type == AttentionMaskType.causal
        self.layer, self.head_size, self.q_scaling = local_layer_idx, size, q_scaling
        self.num_attention_heads = num_attention_heads // tp_size
        rows = num_attention_heads * size
        shared = {"bias": bias, "dtype": dtype, "tp_group": tp_group, "tp_size": tp_size}
        self.qkv = ColumnLinear(hidden_size, 3 * rows, gather_output=False, **shared)
        self.dense = RowLinear(rows, hidden_size, **shared)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        use_cache=False,
        spec_decoding_params=None,
        kv_cache_params=None,
        attention_params=None,
        encoder_output=None,
        position_embedding=None,
        norm_before_bmm1=False,
        lora_layer_params=None,
        cross_kv_cache_gen=None,
        cross_qkv_reuse=None,
        reduce_fusion_params=None,
    ):
        assert isinstance(hidden_states, Tensor)
        qkv = self.qkv(hidden_states, None)
        after = current_rank().note("attention", qkv)
        lengths = attention_params.host_context_lengths.value.tolist()
        past = kv_cache_params.past_key_value[0].value
        seen = kv_cache_params.host_past_key_value_lengths.value.tolist()
        rows = qkv.value.split(lengths if qkv.value.shape[0] == sum(lengths) else 1)
        results = [self.attend(row, past[index], seen[index]) for index, row in enumerate(rows)]
        context = self.dense(Tensor(torch.cat(results), after), lora_runtime_params=None, reduce_fusion_params=None)
        return (context, Tensor(past, after)) if use_cache else context

    def attend(self, qkv, past, seen):
        """One sequence's attention: rows (T, 3 H K) of new tokens behind `seen` ones in `past` (2, H, capacity, K)."""
        heads, length = self.num_attention_heads, len(qkv)
        q, k, v = (part.unflatten(-1, (heads, self.head_size)).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        past[0, :, seen : seen + length], past[1, :, seen : seen + length] = k, v
        keys, values = past[:, :, : seen + length]
        scores = q @ keys.mT / (self.head_size**0.5 * self.q_scaling)
        future = torch.ones(length, seen + length).triu(seen + 1).bool()
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
        return y.transpose(0, 1).flatten(1)
