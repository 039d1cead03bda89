"""Sizing arithmetic: parameters, widths that match, FLOPs, KV cache. Plain integers, no torch.

Sizes come as a dictionary with the keys of a model's config.json: architecture, n_layer, n_head, width, vocab_size,
block_size, bias and tied (if not the defaults) and, for kraken, degree and ffn_expansion.
"""

import math
from collections.abc import Mapping

STANDARD_FFN_EXPANSION, KRAKEN_FFN_EXPANSION = 4, 2


def splits(sizes: Mapping) -> int:
    return sizes["degree"] if sizes["architecture"] == "kraken" else 1


def ffn_expansion(sizes: Mapping) -> int:
    if sizes["architecture"] == "kraken":
        return sizes.get("ffn_expansion", KRAKEN_FFN_EXPANSION)
    return STANDARD_FFN_EXPANSION


def matrix_parameters_per_layer(sizes: Mapping) -> int:
    """Weights of a layer's products: N splits of q, k, v, output (4 d^2) and two of the MLP (2 e d^2)."""
    return splits(sizes) * (4 + 2 * ffn_expansion(sizes)) * sizes["width"] ** 2


def bias_parameters_per_layer(sizes: Mapping) -> int:
    """Biases of q, k, v, the hidden layer and what leads back; Parallel leads back once, the others twice."""
    back = 1 if sizes["architecture"] == "parallel" else 2
    return splits(sizes) * (3 + ffn_expansion(sizes) + back) * sizes["width"]


def parameter_count(sizes: Mapping) -> int:
    """Trainable parameters, a tied embedding counted once.

    Kraken without biases: V d + T d + L N (4 d^2 + 2 e d^2 + 2 d) + N d^2 + d. Parallel has one LayerNorm per layer,
    the others two.
    """
    width, n, bias = sizes["width"], splits(sizes), sizes.get("bias", False)
    norms = 1 if sizes["architecture"] == "parallel" else 2
    norm = width * (2 if bias else 1)
    embedding = (sizes["vocab_size"] + sizes["block_size"]) * width
    head = 0 if sizes.get("tied", True) else sizes["vocab_size"] * width
    layer = matrix_parameters_per_layer(sizes) + n * norms * norm
    if bias:
        layer += bias_parameters_per_layer(sizes)
    merge = n * width**2 + (width if bias else 0) if sizes["architecture"] == "kraken" else 0
    return embedding + head + sizes["n_layer"] * layer + merge + norm


def forward_flops_per_token(sizes: Mapping, context: int) -> float:
    """FLOPs of one token's forward pass in a sequence of `context` tokens, a multiply-add as two.

    Products with weights, plus the two products of causal attention, which sees (context + 1) / 2 tokens on average.
    """
    n, width = splits(sizes), sizes["width"]
    weights = sizes["n_layer"] * matrix_parameters_per_layer(sizes) + sizes["vocab_size"] * width
    if sizes["architecture"] == "kraken":
        weights += n * width**2
    attention = sizes["n_layer"] * 2 * n * width * (context + 1) / 2
    return 2 * (weights + attention)


def training_flops_per_token(sizes: Mapping) -> float:
    """Forward and backward over windows of block_size: three forward passes' worth."""
    return 3 * forward_flops_per_token(sizes, sizes["block_size"])


def kv_bytes_per_token(sizes: Mapping, bytes_per_element: int) -> int:
    """Keys and values that a token leaves in the cache, over all ranks."""
    return 2 * sizes["n_layer"] * splits(sizes) * sizes["width"] * bytes_per_element


def kraken_width(standard_width: int, standard_heads: int, degree: int, rule: str = "head_size") -> tuple[int, int]:
    """(width, n_head) of the Kraken with the parameters per layer of a standard model: N (4 + 2 * 2) d^2 = 12 D^2.

    rule `head_size`: heads as large as the standard model's, the width their nearest multiple. rule `head_count`: as
    many heads in all, the width the nearest multiple of a split's heads (the authors' trained models).
    """
    exact = standard_width * math.sqrt(12 / (degree * (4 + 2 * KRAKEN_FFN_EXPANSION)))
    if rule == "head_size":
        head_size = standard_width // standard_heads
        per_split = max(1, round(exact / head_size))
        return per_split * head_size, per_split * degree
    per_split = standard_heads // degree
    return max(1, round(exact / per_split)) * per_split, standard_heads


def kraken_width_for_total(parameters: int, sizes: Mapping) -> int:
    """Width of the Kraken whose parameters in all come nearest to `parameters`; `sizes` as above, its width ignored."""
    step = sizes["n_head"] // sizes["degree"]
    best = nearest = step
    while parameter_count({**sizes, "width": nearest}) < 2 * parameters:
        if abs(parameter_count({**sizes, "width": nearest}) - parameters) < abs(
            parameter_count({**sizes, "width": best}) - parameters
        ):
            best = nearest
        nearest += step
    return best
