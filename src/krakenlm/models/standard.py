"""GPT-2 (pre-LayerNorm): two AllReduces per layer, each waited for at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from krakenlm.models import blocks
from krakenlm.models.blocks import ALL, MLP, Attention, Cache, Embedding, LayerNorm
from krakenlm.models.collectives import ALONE, Collectives

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

    def forward(self, x_BTD: Tensor, comm: Collectives, cache: Cache | None, index: int) -> Tensor:
        x_BTD = x_BTD + comm.all_reduce(self.attention(self.norm1(x_BTD), cache, index)).wait()
        return x_BTD + comm.all_reduce(self.mlp(self.norm2(x_BTD))).wait()


class Standard(nn.Module):
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
        x_BTD = self.embedding(tokens_BT, cache)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, comm, cache, index)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.embedding.logits(self.norm(x_BTD[:, at]), comm)


def shard(read: Callable[[str], Tensor], names: list[str], config: Config, rank: int, world: int) -> dict[str, Tensor]:
    """A rank's tensors: rows of what leads into heads and hidden units, columns of what leads out of them."""
    return {name: blocks.share(name, read(name), config.width, rank, world) for name in names}
