"""Parallel attention and feed-forward (GPT-J, PaLM): x + Attn(LN(x)) + MLP(LN(x)), one AllReduce per layer.

Both halves read the same input, so q, k, v and the hidden layer come from one product, and one product leads back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from krakenlm.models import blocks
from krakenlm.models.blocks import ALL, Cache, Embedding, LayerNorm
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.models.products import Linear
from krakenlm.models.standard import FFN_EXPANSION


@dataclass(frozen=True, kw_only=True)
class Config(blocks.Config):
    architecture: ClassVar[str] = "parallel"


class Layer(nn.Module):
    """This rank's part of Attn(LN(x)) + MLP(LN(x))."""

    def __init__(self, config: Config, world: int) -> None:
        super().__init__()
        self.heads = config.n_head // world
        self.attended, hidden = config.width // world, FFN_EXPANSION * config.width // world
        self.norm = LayerNorm(config.width, bias=config.bias)
        parts = (self.attended, 2 * self.attended, hidden)
        self.qkv_up = Linear(config.width, sum(parts), bias=config.bias, parts=parts)
        self.out = Linear(self.attended + hidden, config.width, bias=config.bias)

    def forward(self, x_BTD: Tensor, cache: Cache | None, index: int, at: slice | Tensor) -> Tensor:
        y_BTD, width = self.norm(x_BTD), self.attended
        if blocks.is_all(at) and not self.qkv_up.packed:
            q, k, v, up = self.qkv_up(y_BTD).tensor_split([width, 2 * width, 3 * width], dim=-1)
        else:
            q, up = (self.qkv_up(y_BTD[:, at], rows) for rows in (slice(0, width), slice(3 * width, None)))
            k, v = self.qkv_up(y_BTD, slice(width, 3 * width)).chunk(2, dim=-1)
        attended = blocks.attend(q, k, v, self.heads, cache, index, at)
        return self.out(torch.cat([attended, blocks.gelu(up)], dim=-1))


class Parallel(nn.Module):
    """Rank `rank` of `world`; with world 1 the whole model, as it is trained."""

    Config = Config

    def __init__(self, config: Config, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        blocks.check_world(config, world)
        self.config, self.splits, self.heads = config, 1, config.n_head // world
        self.embedding = Embedding(config, rank, world)
        self.layers = nn.ModuleList(Layer(config, world) for _ in range(config.n_layer))
        self.norm = LayerNorm(config.width, bias=config.bias)

    def forward(
        self,
        tokens_BT: Tensor,
        comm: Collectives = ALONE,
        cache: Cache | None = None,
        at: slice | Tensor = ALL,
    ) -> Tensor:
        """Logits (B, P, V) at the P positions `at` of the inputs, which follow whatever `cache` holds."""
        x_BTD, at = self.embedding(tokens_BT, cache), blocks.wanted(at, tokens_BT.shape[1])
        for index, layer in enumerate(self.layers):
            needed = at if index + 1 == len(self.layers) else ALL
            x_BTD = x_BTD[:, needed] + comm.all_reduce(layer(x_BTD, cache, index, needed)).wait()
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.embedding.logits(self.norm(x_BTD), comm)


def shard(read: Callable[[str], Tensor], names: list[str], config: Config, rank: int, world: int) -> dict[str, Tensor]:
    """A rank's tensors: of each of q, k, v and the hidden layer its heads and units."""
    width, hidden = config.width, FFN_EXPANSION * config.width
    tensors = {}
    for name in names:
        tensor = read(name)
        if ".qkv_up." in name:
            tensor = blocks.part(tensor, 0, rank, world, (width, width, width, hidden))
        elif name == "embedding.head":
            tensor = blocks.part(tensor, 0, rank, world)
        elif name.endswith(".out.weight"):
            tensor = blocks.part(tensor, 1, rank, world, (width, hidden))
        elif name.endswith(".out.bias"):
            tensor = blocks.once(tensor, rank)
        tensors[name] = tensor
    return tensors
