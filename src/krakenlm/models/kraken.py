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
from krakenlm.models.blocks import ALL, MLP, Attention, Cache, Embedding, LayerNorm
from krakenlm.models.collectives import ALONE, Collectives, Group
from krakenlm.models.products import Linear


@dataclass(frozen=True, kw_only=True)
class Config(blocks.Config):
    degree: int  # N, the number of splits
    ffn_expansion: int = 2

    architecture: ClassVar[str] = "kraken"

    @property
    def splits(self) -> int:
        return self.degree


class Layer(nn.Module):
    """One layer of `splits` of the N splits, or one of `parts` equal shares of a single split's heads and units."""

    def __init__(self, config: Config, splits: int, parts: int) -> None:
        super().__init__()
        heads, hidden = config.heads_per_split // parts, config.ffn_expansion * config.width // parts
        self.norm1 = LayerNorm(config.width, splits, config.bias)
        self.attention = Attention(config.width, heads, config.head_size, splits, config.bias)
        self.norm2 = LayerNorm(config.width, splits, config.bias)
        self.mlp = MLP(config.width, hidden, splits, config.bias)


class Kraken(nn.Module):
    """Rank `rank` of `world`; with world 1 the whole model, as it is trained.

    With fewer ranks than splits a rank has several whole splits. With more, `parts` ranks share one split: each has
    its stream x_i whole and a share of its heads and hidden units, and two more AllReduces a layer join the shares.

    Raises:
        InputError: splits, or heads of one, do not divide evenly over the ranks.
    """

    Config = Config

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        check_world(config, world)
        self.parts = max(1, world // config.degree)
        self.within, self.across = Group("split", self.parts), Group("across", self.parts)
        self.config, self.splits = config, max(1, config.degree // world)
        self.heads = config.heads_per_split // self.parts
        self.embedding = Embedding(config, rank, world)
        self.layers = nn.ModuleList(Layer(config, self.splits, self.parts) for _ in range(config.n_layer))
        # W by its column blocks: W [x_1; ...; x_N] = sum over i of W_i x_i, so each rank multiplies its own.
        share = config.width // self.parts
        self.merged = slice(rank % self.parts * share, (rank % self.parts + 1) * share)
        self.merge = Linear(share, config.width, self.splits)
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
        at = blocks.wanted(at, tokens_BT.shape[1])
        pending = None
        for index, layer in enumerate(self.layers):
            remaining = len(self.layers) - index
            needed = at if remaining == 1 else ALL
            attended = comm.all_reduce(layer.attention(layer.norm1(x_NBTD), cache, index, needed), self.within)
            a_NBTD = attended.wait()
            h_NBTD = x_NBTD[:, :, needed] + a_NBTD
            mlp_input = h_NBTD if pending is None else pending.wait() + a_NBTD
            x_NBTD = h_NBTD + comm.all_reduce(layer.mlp(layer.norm2(mlp_input)), self.within).wait()
            if remaining > 1:
                # The last layer's MLP is all that this sum enters then: at the wanted positions alone.
                needed = at if remaining == 2 else ALL
                pending = comm.all_reduce(over_splits(x_NBTD[:, :, needed]), self.across)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        y_BPD = comm.all_reduce(over_splits(self.merge(x_NBTD[..., self.merged]))).wait()
        if self.merge_bias is not None:
            y_BPD = y_BPD + self.merge_bias
        return self.embedding.logits(self.norm(y_BPD), comm)


def over_splits(x_NBTD: Tensor) -> Tensor:
    """Sum over this rank's splits; of a single one, a view."""
    return x_NBTD[0] if len(x_NBTD) == 1 else x_NBTD.sum(0)


def check_world(config: Config, world: int) -> None:
    """Refuse a number of ranks over which neither splits nor the heads of one divide evenly.

    Raises:
        InputError: naming the numbers that work.
    """
    works = [n for n in range(1, config.degree + 1) if config.degree % n == 0]
    works += [n * config.degree for n in range(2, config.heads_per_split + 1) if config.heads_per_split % n == 0]
    if world not in works:
        raise InputError(
            f"tp: expected a divisor of the degree ({config.degree}), or a multiple of it that divides n_head "
            f"({config.n_head}): {', '.join(map(str, works))}; found {world}; choose one"
        )


def shard(read: Callable[[str], Tensor], names: list[str], config: Config, rank: int, world: int) -> dict[str, Tensor]:
    """A rank's tensors: whole splits, or a share of one split's heads and hidden units."""
    parts = max(1, world // config.degree)
    split, place, ranks = rank // parts, rank % parts, world // parts
    tensors = {}
    for name in names:
        tensor = read(name)
        if name == "embedding.head":
            tensor = blocks.part(tensor, 0, rank, world)
        elif name.startswith(("layers.", "merge.")):
            tensor = blocks.part(tensor, 0, split, ranks)
            if name == "merge.weight":
                tensor = blocks.part(tensor, 2, place, parts)
            else:
                tensor = blocks.share(name, tensor, config.width, place, parts, stacked=True)
        tensors[name] = tensor
    return tensors
