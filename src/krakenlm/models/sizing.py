"""Sizing arithmetic: parameters, widths that match, FLOPs, memory of training, KV cache. Plain integers, no torch.

Sizes come as a dictionary with the keys of a model's config.json: architecture, n_layer, n_head, width, vocab_size,
block_size, bias and tied (if not the defaults) and, for kraken, degree and ffn_expansion.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from krakenlm.errors import InputError
from krakenlm.values import HeadRule

STANDARD_FFN_EXPANSION, KRAKEN_FFN_EXPANSION = 4, 2
FLOAT32 = 4  # bytes
HEADS_AT_ONCE = 8  # a multiple of so many heads has a model whose shape is chosen here for the usual ranks
HEAD_RULES = get_args(HeadRule)  # of a Kraken that matches a standard model (see kraken_width)
# The shapes that the paper times, as standard models: GPT-3's (arXiv 2005.14165, table 2.1; its 1.3B has 24 heads of
# 128 there, which do not make 2048: 16 do) and LLaMA's of 65B (arXiv 2302.13971, table 2). The paper's own table is not
# available, so these are assumed.
SHAPES = {
    "1.3b": {"n_layer": 24, "width": 2048, "n_head": 16},
    "6.7b": {"n_layer": 32, "width": 4096, "n_head": 32},
    "13b": {"n_layer": 40, "width": 5120, "n_head": 40},
    "65b": {"n_layer": 80, "width": 8192, "n_head": 64},
    "175b": {"n_layer": 96, "width": 12288, "n_head": 96},
}


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


def rank_parameter_count(sizes: Mapping, world: int) -> int:
    """Parameters on the fullest of `world` ranks, from which its memory for weights follows.

    Token and position embeddings are whole on every rank, and so is a tied head, which is the token embedding; an
    untied head is split by vocabulary. Heads and hidden units are split; LayerNorms and the biases behind sums are not.
    """
    width, bias = sizes["width"], sizes.get("bias", False)
    n, norms = max(1, splits(sizes) // world), 1 if sizes["architecture"] == "parallel" else 2
    norm = width * (2 if bias else 1)
    count = (sizes["vocab_size"] + sizes["block_size"]) * width + norm
    if not sizes.get("tied", True):
        count += -(-sizes["vocab_size"] // world) * width
    layer = matrix_parameters_per_layer(sizes) // world + n * norms * norm
    if bias:
        back = (1 if sizes["architecture"] == "parallel" else 2) * n * width
        inward = splits(sizes) * (3 + ffn_expansion(sizes)) * width // world
        layer += inward + back
    if sizes["architecture"] == "kraken":
        count += splits(sizes) * width**2 // world + (width if bias else 0)
    return count + sizes["n_layer"] * layer


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


def prefill_flops(sizes: Mapping, context: int) -> float:
    """FLOPs of the forward pass over a prompt of `context` tokens that asks for the last position's logits alone.

    Of the last layer the other positions need keys and values only, of Ladder's last but one all but its MLP.
    """
    n, width, others = splits(sizes), sizes["width"], context - 1
    unasked = others * sizes["vocab_size"] * width
    unasked += others * n * (2 + 2 * ffn_expansion(sizes)) * width**2
    unasked += 2 * n * width * context * others / 2
    if sizes["architecture"] == "kraken":
        unasked += others * n * width**2
    if sizes["architecture"] == "ladder" and sizes["n_layer"] > 1:
        unasked += others * 2 * ffn_expansion(sizes) * width**2
    return context * forward_flops_per_token(sizes, context) - 2 * unasked


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device while it trains; `activations` is what backward needs of one micro-batch, at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(sizes: Mapping, sequences: int, element_bytes: int) -> TrainingMemory:
    """Memory of training on micro-batches of `sequences` windows of block_size, run op by op.

    `element_bytes` is the precision of the products: 4 for float32, 2 for mixed bfloat16, which keeps float32 weights
    and a bfloat16 copy of each. AdamW has two float32 moments. A compiler that fuses or recomputes needs less.
    """
    parameters = parameter_count(sizes)
    casts = element_bytes * parameters if element_bytes < FLOAT32 else 0
    tokens = sequences * sizes["block_size"]
    return TrainingMemory(
        weights=FLOAT32 * parameters + casts,
        gradients=FLOAT32 * parameters,
        optimizer=2 * FLOAT32 * parameters,
        activations=tokens * (saved_bytes_per_token(sizes, element_bytes) + loss_bytes_per_token(sizes, element_bytes)),
    )


def saved_bytes_per_token(sizes: Mapping, element_bytes: int) -> int:
    """Bytes per token that the layers keep for backward.

    Of a layer, in the precision of its products, per width: each product's input (LayerNorms' results, attention's, the
    hidden layer's after GELU), GELU's input, and q, k, v. In float32: each LayerNorm's input, and, where splits have
    weights of their own, its result before them (a GPU with Triton does without large ones). The last LayerNorm has one
    of each, and Kraken's merge its inputs.
    """
    width, n = sizes["width"], splits(sizes)
    # Parallel has one LayerNorm, and its last product's input holds a copy of attention's result.
    norms, copies = (1, 1) if sizes["architecture"] == "parallel" else (2, 0)
    products = norms + 3 + 1 + copies + 2 * ffn_expansion(sizes)
    layer = n * width * (products * element_bytes + norms * (2 if n > 1 else 1) * FLOAT32)
    merge = n * width * element_bytes if sizes["architecture"] == "kraken" else 0
    return sizes["n_layer"] * layer + merge + width * (FLOAT32 + element_bytes)


def loss_bytes_per_token(sizes: Mapping, element_bytes: int) -> int:
    """Bytes per token of logits, their logarithms of probabilities and the gradient, when backward starts."""
    casts = element_bytes if element_bytes < FLOAT32 else 0
    return sizes["vocab_size"] * (3 * FLOAT32 + casts)


def kv_bytes_per_token(sizes: Mapping, bytes_per_element: int) -> int:
    """Keys and values that a token leaves in the cache, over all ranks."""
    return 2 * sizes["n_layer"] * splits(sizes) * sizes["width"] * bytes_per_element


def kraken_width(standard_width: int, standard_heads: int, degree: int, rule: str = "head_size") -> tuple[int, int]:
    """(width, n_head) of the Kraken with the parameters per layer of a standard model: N (4 + 2 * 2) d^2 = 12 D^2.

    rule `head_size`: heads as large as the standard model's, the width their nearest multiple. rule `head_count`: as
    many heads in all, the width the nearest multiple of a split's heads (the authors' trained models).
    """
    exact = standard_width * math.sqrt(12 / (degree * (4 + 2 * KRAKEN_FFN_EXPANSION)))
    step = width_step(standard_width, standard_heads, degree, rule)
    width = max(1, round(exact / step)) * step
    return width, heads_of(width, standard_width, standard_heads, degree, rule)


def kraken_width_for_total(standard: Mapping, degree: int, rule: str = "head_size") -> tuple[int, int]:
    """(width, n_head) of the Kraken whose parameters in all come nearest to those of `standard`, embeddings included.

    Layers, vocabulary, block and biases are the standard model's; rules for heads as in `kraken_width`.
    """
    shape = standard["width"], standard["n_head"], degree, rule
    target, step = parameter_count(standard), width_step(*shape)

    def excess(width: int) -> int:
        kraken = {"architecture": "kraken", "degree": degree, "width": width, "n_head": heads_of(width, *shape)}
        return parameter_count({**standard, **kraken}) - target

    width = step
    while excess(width + step) <= 0:
        width += step
    width = min(width, width + step, key=lambda candidate: abs(excess(candidate)))
    return width, heads_of(width, *shape)


def standard_shape(parameters: float, vocab_size: int, block_size: int, ranks: Sequence[int] = ()) -> dict[str, int]:
    """n_layer, width and n_head of a standard model of about so many parameters, embeddings included.

    The width is that of `SHAPES` of this size, interpolated over logarithms, to whole groups of HEADS_AT_ONCE heads, or
    of as many as each of `ranks` divides, so that it divides over them; then as many layers as come nearest.

    Raises:
        InputError: the parameters are too few for one layer.
    """
    given = {"architecture": "standard", "vocab_size": vocab_size, "block_size": block_size}
    sizes = sorted((math.log(parameter_count({**given, **each})), math.log(each["width"])) for each in SHAPES.values())
    at, pairs = math.log(max(parameters, 1)), list(itertools.pairwise(sizes))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    wanted = math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    head_size = 128 if wanted >= SHAPES["1.3b"]["width"] else 64
    common = math.lcm(*ranks)
    step = head_size * (common if HEADS_AT_ONCE % common else HEADS_AT_ONCE)
    width = step * max(1, round(wanted / step))
    one, two = (parameter_count({**given, "width": width, "n_layer": layers}) for layers in (1, 2))
    if parameters < one:
        raise InputError(
            f"parameters: expected at least {one:,}, one layer of width {width} ({width // head_size} heads, which "
            f"divide over the ranks) with a vocabulary of {vocab_size}, found {parameters:g}; choose more"
        )
    n_layer = 1 + round((parameters - one) / (two - one))
    return {"n_layer": n_layer, "width": width, "n_head": width // head_size}


def width_step(standard_width: int, standard_heads: int, degree: int, rule: str) -> int:
    """What the width of a split is a multiple of.

    Raises:
        InputError: there is no such rule, or the heads cannot be divided over the splits.
    """
    if rule not in HEAD_RULES:
        raise InputError(f"rule: expected one of {', '.join(HEAD_RULES)}, found {rule!r}; choose one")
    if rule == "head_size":
        return standard_width // standard_heads
    if standard_heads % degree:
        raise InputError(
            f"n_head: expected a multiple of the degree ({degree}), found {standard_heads}; change one of the two, or "
            "take the rule head_size"
        )
    return standard_heads // degree


def heads_of(width: int, standard_width: int, standard_heads: int, degree: int, rule: str) -> int:
    """Heads in all of a Kraken of `width`."""
    return standard_heads if rule == "head_count" else width // (standard_width // standard_heads) * degree


def sizes_of(architecture: str, width: int, n_head: int, tp: int) -> dict:
    """Width and heads of an architecture of the standard model's size; a Kraken has a split per rank, two at least."""
    if architecture != "kraken":
        return {"architecture": architecture, "width": width, "n_head": n_head}
    degree = max(tp, 2)
    kraken, heads = kraken_width(width, n_head, degree, rule="head_size")
    return {"architecture": architecture, "degree": degree, "width": kraken, "n_head": heads}
