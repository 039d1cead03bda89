"""Ladder Residual (arXiv 2501.06589): each block reads the stream before its predecessor's output has been added, so
both AllReduces of a layer run under the next block's compute.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from krakenlm.models import blocks, standard
from krakenlm.models.blocks import ALL, Cache, Embedding, LayerNorm
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.models.standard import Layer


@dataclass(frozen=True, kw_only=True)
class Config(blocks.Config):
    architecture: ClassVar[str] = "ladder"


class Ladder(nn.Module):
    """Rank `rank` of `world`; with world 1 the whole model. Weights are those of a standard model of the same sizes.

    Each layer: x += a'; a = Attn(LN1(x)); x += m'; m = MLP(LN2(x)), with a' and m' the previous layer's (none in
    the first); x += a + m after the last.
    """

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
        attended = fed = None
        for index, layer in enumerate(self.layers):
            remaining = len(self.layers) - index
            if attended is not None:
                x_BTD = x_BTD + attended.wait()
            needed = at if remaining == 1 else ALL
            attended = comm.all_reduce(layer.attention(layer.norm1(x_BTD), cache, index, needed))
            x_BTD = x_BTD[:, needed]
            if fed is not None:
                x_BTD = x_BTD + fed.wait()
            # The last layer adds its predecessor's MLP behind its attention: at the wanted positions alone.
            needed = at if remaining == 2 else ALL
            fed = comm.all_reduce(layer.mlp(layer.norm2(x_BTD[:, needed])))
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.embedding.logits(self.norm(x_BTD + attended.wait() + fed.wait()), comm)


shard = standard.shard
