"""Generation over any number of ranks: all see the gathered logits and draw alike, so all choose the same token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE, Collectives


def likeliest(logits_BV: Tensor) -> Tensor:
    """The token (B,) with the largest logit: greedy decoding."""
    return logits_BV.argmax(dim=-1)


@dataclass
class Sampling:
    """Draws a token from the softmax of logits / temperature, cut to the `top_k` likeliest and to the smallest set of
    the likeliest that together have the probability `top_p` (nucleus sampling, arXiv 1904.09751).

    Raises:
        InputError: an option is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature: expected a number above 0, found {self.temperature}; 0 is greedy decoding")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k: expected at least 1, found {self.top_k}; raise it or leave it out")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a number above 0 and at most 1, found {self.top_p}; correct it")
        # On the CPU wherever the model is, so that the same seed draws the same tokens.
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        values_BV, order_BV = (logits_BV.float().cpu() / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            values_BV[:, self.top_k :] = -torch.inf
        probabilities_BV = values_BV.softmax(dim=-1)
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV[before_BV >= self.top_p] = 0
        place_B1 = torch.multinomial(probabilities_BV, 1, generator=self.generator)
        return order_BV.gather(1, place_B1)[:, 0].to(logits_BV.device)


def generate(
    module: nn.Module,
    prompts_BT: Tensor,
    new_tokens: int,
    comm: Collectives = ALONE,
    cache: Cache | None = None,
    choose: Callable[[Tensor], Tensor] = likeliest,
) -> Iterator[Tensor]:
    """Yield `new_tokens` times the next token (B,) of prompts of equal length.

    `cache` may be one of an earlier call that is to be used again; its tokens are forgotten. `choose` maps logits
    (B, V) to tokens (B,).
    """
    if cache is None:
        cache = Cache(module, len(prompts_BT), prompts_BT.shape[1] + new_tokens)
    cache.rewind()
    inputs_BT = prompts_BT
    for _ in range(new_tokens):
        logits_BPV = module(inputs_BT, comm, cache, at=LAST)
        token_B = choose(logits_BPV[:, -1])
        yield token_B
        inputs_BT = token_B[:, None]
