"""GPT-2 (pre-LayerNorm): two AllReduces per layer, each waited for at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from krakenlm.models import blocks
from krakenlm.models.blocks import ALL, MLP, Attention, Cache, Embedding, LayerNorm
from krakenlm.models.collectives import ALONE, Collectives, Done, Pending

FFN_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class Config(blocks.Config):
    architecture: ClassVar[str] = "standard"


class Layer(nn.Module):
    """h = x + Attn(LN1(x)); x' = h + MLP(LN2(h))."""

    def __init__(self, config: Config, world: int) -> None:
        super().__init__()
        heads, hidden, bias = config.n_head // world, FFN_EXPANSION * config.width // world, config.bias
        self.norm1 = LayerNorm(config.width, bias=bias)
        self.attention = Attention(config.width, heads, config.head_size, bias=bias)
        self.norm2 = LayerNorm(config.width, bias=bias)
        self.mlp = MLP(config.width, hidden, bias=bias)

    def forward(self, x_BTD: Tensor, comm: Collectives, cache: Cache | None, index: int, at: slice | Tensor) -> Tensor:
        attended_BPD = comm.all_reduce(self.attention(self.norm1(x_BTD), cache, index, at)).wait()
        x_BPD = x_BTD[:, at] + attended_BPD
        return x_BPD + comm.all_reduce(self.mlp(self.norm2(x_BPD))).wait()


class Standard(nn.Module):
    """Rank `rank` of `world`; with world 1 the whole model, as it is trained.

    With `chunks` above 1 a prompt goes through each layer in that many chunks, and one chunk's AllReduce runs under
    another's compute: the same weights and logits, sooner where communication is slow.
    """

    Config = Config
    chunks = 1

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
        x_BTD = self.all_but_last_layer(x_BTD, comm, cache)
        x_BPD = self.layers[-1](x_BTD, comm, cache, len(self.layers) - 1, at)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.embedding.logits(self.norm(x_BPD), comm)

    def all_but_last_layer(self, x_BTD: Tensor, comm: Collectives, cache: Cache | None) -> Tensor:
        """Every layer that needs all positions."""
        layers = list(enumerate(self.layers))[:-1]
        if self.chunks == 1 or x_BTD.shape[1] < self.chunks:
            for index, layer in layers:
                x_BTD = layer(x_BTD, comm, cache, index, ALL)
            return x_BTD
        if cache is None:
            raise ValueError("chunks of a prompt need a cache: each attends to the keys of those before it")
        chunks = list(x_BTD.chunk(self.chunks, dim=1))
        pending: list[Pending] = [Done(torch.zeros((), device=x_BTD.device, dtype=x_BTD.dtype))] * len(chunks)
        for index, layer in layers:
            for place, reduced in enumerate(pending):
                chunks[place] = chunks[place] + reduced.wait()
                pending[place] = comm.all_reduce(layer.attention(layer.norm1(chunks[place]), cache, index))
            for place, reduced in enumerate(pending):
                chunks[place] = chunks[place] + reduced.wait()
                pending[place] = comm.all_reduce(layer.mlp(layer.norm2(chunks[place])))
        return torch.cat([chunk + reduced.wait() for chunk, reduced in zip(chunks, pending, strict=True)], dim=1)


def shard(read: Callable[[str], Tensor], names: list[str], config: Config, rank: int, world: int) -> dict[str, Tensor]:
    """A rank's tensors: rows of what leads into heads and hidden units, columns of what leads out of them."""
    return {name: blocks.share(name, read(name), config.width, rank, world) for name in names}
