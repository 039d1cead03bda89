"""Kraken (arXiv 2408.07802): every layer is N independent sub-layers, and one AllReduce per layer runs under attention.

Each split i has its own weights and its own residual stream x_i:

    layer 0:      h_i = x + Attn_i(LN1_i(x));       x_i  = h_i + MLP_i(LN2_i(h_i))
    layer l > 0:  h_i = x_i + Attn_i(LN1_i(x_i));   x_i' = h_i + MLP_i(LN2_i(h_i + sum over j != i of x_j))
    at the end:   y = LN_f(W [x_1; ...; x_N])                    (+ one bias, if the model has biases)

With S = sum over all j of x_j and a_i the attention's output, h_i + sum over j != i of x_j = S + a_i: S is needed
only by the MLP, so it is reduced while attention computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from krakenlm.errors import InputError
from krakenlm.models import blocks
from krakenlm.models.blocks import ALL, MLP, Attention, Cache, Embedding, LayerNorm, Linear
from krakenlm.models.collectives import ALONE, Collectives


@dataclass(frozen=True, kw_only=True)
class Config(blocks.Config):
    degree: int  # N, the number of splits
    ffn_expansion: int = 2

    architecture: ClassVar[str] = "kraken"

    @property
    def splits(self) -> int:
        return self.degree


class Layer(nn.Module):
    """One layer of `splits` of the N splits."""

    def __init__(self, config: Config, splits: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, splits, config.bias)
        self.attention = Attention(config.width, config.heads_per_split, config.head_size, splits, config.bias)
        self.norm2 = LayerNorm(config.width, splits, config.bias)
        self.mlp = MLP(config.width, config.ffn_expansion * config.width, splits, config.bias)


class Kraken(nn.Module):
    """The splits of rank `rank` of `world`; with world 1 all of them, as they are trained.

    Raises:
        InputError: the splits do not divide evenly over the ranks.
    """

    Config = Config

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        if config.degree % world:
            works = ", ".join(str(n) for n in range(1, config.degree + 1) if config.degree % n == 0)
            raise InputError(
                f"tp: expected a divisor of the degree ({config.degree}: {works}), found {world}; choose one"
            )
        self.config, self.splits, self.heads = config, config.degree // world, config.heads_per_split
        self.embedding = Embedding(config, rank, world)
        self.layers = nn.ModuleList(Layer(config, self.splits) for _ in range(config.n_layer))
        # W by its column blocks: W [x_1; ...; x_N] = sum over i of W_i x_i, so each rank multiplies its own.
        self.merge = Linear(config.width, config.width, self.splits)
        self.merge_bias = nn.Parameter(torch.empty(config.width)) if config.bias else None
        self.norm = LayerNorm(config.width, bias=config.bias)

    def forward(
        self,
        tokens_BT: Tensor,
        comm: Collectives = ALONE,
        cache: Cache | None = None,
        at: slice | Tensor = ALL,
    ) -> Tensor:
        """Logits (B, P, V) at the P positions `at` of the inputs, which follow whatever `cache` holds."""
        x_NBTD = self.embedding(tokens_BT, cache).expand(self.splits, -1, -1, -1)
        pending = None
        for index, layer in enumerate(self.layers):
            a_NBTD = layer.attention(layer.norm1(x_NBTD), cache, index)
            h_NBTD = x_NBTD + a_NBTD
            mlp_input = h_NBTD if pending is None else pending.wait() + a_NBTD
            x_NBTD = h_NBTD + layer.mlp(layer.norm2(mlp_input))
            if index + 1 < len(self.layers):
                pending = comm.all_reduce(over_splits(x_NBTD))
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        y_BPD = comm.all_reduce(over_splits(self.merge(x_NBTD[:, :, at]))).wait()
        if self.merge_bias is not None:
            y_BPD = y_BPD + self.merge_bias
        return self.embedding.logits(self.norm(y_BPD), comm)


def over_splits(x_NBTD: Tensor) -> Tensor:
    """Sum over this rank's splits; of a single one, a view."""
    return x_NBTD[0] if len(x_NBTD) == 1 else x_NBTD.sum(0)


def shard(read: Callable[[str], Tensor], names: list[str], config: Config, rank: int, world: int) -> dict[str, Tensor]:
    """A rank's tensors: whole splits."""
    parted = ("layers.", "merge.", "embedding.head")
    return {name: blocks.part(read(name), 0, rank, world) if name.startswith(parted) else read(name) for name in names}
