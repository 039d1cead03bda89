"""Greedy generation over any number of ranks: every rank sees the gathered logits, so all choose the same token."""

from collections.abc import Iterator

from torch import Tensor, nn

from krakenlm.inference.cache import Cache
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE, Collectives


def generate(
    module: nn.Module, prompts_BT: Tensor, new_tokens: int, comm: Collectives = ALONE, cache: Cache | None = None
) -> Iterator[Tensor]:
    """Yield `new_tokens` times the next token (B,) of prompts of equal length, each the likeliest.

    `cache` may be one of an earlier call that is to be used again; its tokens are forgotten.
    """
    if cache is None:
        cache = Cache(module, len(prompts_BT), prompts_BT.shape[1] + new_tokens)
    cache.rewind()
    inputs_BT = prompts_BT
    for _ in range(new_tokens):
        logits_BPV = module(inputs_BT, comm, cache, at=LAST)
        token_B = logits_BPV[:, -1].argmax(dim=-1)
        yield token_B
        inputs_BT = token_B[:, None]
