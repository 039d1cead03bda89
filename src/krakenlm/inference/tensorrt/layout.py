"""A rank's weights under the names and in the shapes of TensorRT-LLM's layers (definitions.py). Plain torch.

Embeddings are whole on every rank. The head is split by vocabulary and is a tensor of its own even where it is tied to
the token embedding: looking tokens up needs all of its rows on every rank, and an engine shares no rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.errors import InputError
from krakenlm.inference.shards import HEAD_SIZES, TENSORRT_CLASSES, padded_head_size, resize_heads
from krakenlm.models.blocks import Config

# Parts of a layer's names, ours to TensorRT-LLM's.
LAYER_NAMES = {
    "norm": "input_layernorm",
    "norm1": "input_layernorm",
    "norm2": "post_layernorm",
    "attention.qkv": "attention.qkv",
    "attention.out": "attention.dense",
    "mlp.up": "mlp.fc",
    "mlp.down": "mlp.proj",
    "qkv_up": "qkv_up",
    "out": "out",
}
# The same in one split of a Kraken, whose attention is one for all splits of a rank and has no weights of its own.
SPLIT_NAMES = {**LAYER_NAMES, "attention.qkv": "qkv", "attention.out": "dense"}
# Architectures that TensorRT-LLM's row-parallel linear sums: each rank adds the whole bias to the sum, where the
# PyTorch engine has rank 0 add it before.
BIAS_BEHIND_SUM = ("standard", "parallel")


def refuse_unbuildable(config: Config, tp: int) -> None:
    """Refuse what the PyTorch engine can run and TensorRT-LLM cannot.

    Raises:
        InputError: the architecture is not written for it, heads are larger than its kernels take, or ranks would
            share a Kraken's split.
    """
    if config.architecture not in TENSORRT_CLASSES:
        raise InputError(
            f"architecture: expected one that is written for TensorRT-LLM ({', '.join(TENSORRT_CLASSES)}), found "
            f"{config.architecture}; take the PyTorch engine (engine: torch), or write it in tensorrt/definitions.py"
        )
    if config.head_size > HEAD_SIZES[-1]:
        raise InputError(
            f"head size: expected at most {HEAD_SIZES[-1]} for TensorRT-LLM's attention, found {config.head_size}; "
            "give the model more heads, or take the PyTorch engine (engine: torch)"
        )
    if config.architecture == "kraken" and config.degree % tp:
        works = ", ".join(str(n) for n in range(1, config.degree + 1) if config.degree % n == 0)
        raise InputError(
            f"tp: expected a divisor of the degree ({config.degree}: {works}) for TensorRT-LLM, which gives each rank "
            f"whole splits, found {tp}; choose one of these, or the PyTorch engine (engine: torch)"
        )


def rank_tensors(module: nn.Module, biases: Mapping[str, Tensor], rank: int, tp: int) -> dict[str, Tensor]:
    """{TensorRT-LLM's name: tensor} of one rank, from its module as the PyTorch engine loads it.

    `biases` are rank 0's tensors, which hold the biases behind sums over ranks whole.
    """
    config = module.config
    own = dict(module.state_dict())
    if config.architecture in BIAS_BEHIND_SUM:
        own |= {name: biases[name] for name in own if name.endswith((".out.bias", ".down.bias"))}
    named = head_and_embeddings(own, config, rank, tp)
    sizes = config.head_size, padded_head_size(config.head_size)
    layers = {name: resize_heads(name, tensor, module.heads, *sizes) for name, tensor in own.items()}
    named |= kraken_tensors(layers) if config.architecture == "kraken" else decoder_tensors(layers)
    return named | missing_norm_biases(named)


def head_and_embeddings(own: dict[str, Tensor], config: Config, rank: int, tp: int) -> dict[str, Tensor]:
    """What all architectures have, taken out of `own`: embeddings, and this rank's rows of the head, zeros behind."""
    tokens, positions, head = (own.pop(f"embedding.{name}", None) for name in ("tokens", "positions", "head"))
    rows = -(-config.vocab_size // tp)
    if head is None:
        head = tokens[rank * rows : (rank + 1) * rows]
    linear = "lm_head.linear.weight" if config.architecture == "kraken" else "lm_head.weight"
    return {
        "transformer.vocab_embedding.weight": tokens,
        "transformer.position_embedding.weight": positions,
        linear: F.pad(head, (0, 0, 0, rows - len(head))),
    }


def decoder_tensors(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers and last LayerNorm of standard, parallel and ladder."""
    named = {}
    for name, tensor in own.items():
        *inner, last = name.split(".")
        if inner[0] == "layers":
            named[f"transformer.layers.{inner[1]}.{LAYER_NAMES['.'.join(inner[2:])]}.{last}"] = tensor
        else:
            named[f"transformer.ln_f.{last}"] = tensor
    return named


def kraken_tensors(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers, split by split, and what joins the streams at the end."""
    named = {}
    for name, tensor_N in own.items():
        *inner, last = name.split(".")
        if name == "merge.weight":  # (n, D, D) to (D, n D): a row-parallel linear over the streams side by side
            named["lm_head.merge.weight"] = torch.cat(list(tensor_N), dim=1)
        elif name == "merge_bias":
            named["lm_head.merge.bias"] = tensor_N
        elif inner[0] == "norm":
            named[f"lm_head.ln_f.{last}"] = tensor_N
        elif inner[0] == "layers":
            for split, tensor in enumerate(tensor_N):
                where = f"transformer.layers.{inner[1]}.splits.{split}"
                named[f"{where}.{SPLIT_NAMES['.'.join(inner[2:])]}.{last}"] = tensor
    return named


def missing_norm_biases(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the biases that a LayerNorm of TensorRT-LLM's always has, and a model without biases has not."""
    norms = (name for name in named if ("layernorm" in name or "ln_f" in name) and name.endswith(".weight"))
    biases = {name.removesuffix("weight") + "bias": torch.zeros_like(named[name]) for name in norms}
    return {name: tensor for name, tensor in biases.items() if name not in named}
