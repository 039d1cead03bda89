"""Memory of a rank while it prefills: weights, KV cache, and the most that results take at one time.

The last is read off the forward itself, traced on meta tensors (krakenlm.latency.trace); what a runtime takes besides
is not in it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from krakenlm import models
from krakenlm.latency.trace import Trace, trace

# Of a rank's memory, what models may fill: the rest is the runtime's, and what an allocator cannot join.
USABLE = 0.9


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank: `fixed` whatever the prompt, `per_token` more for each token of every prompt."""

    fixed: float
    per_token: float

    def at(self, context: int) -> float:
        return self.fixed + self.per_token * context

    def longest_context(self, available: float) -> int:
        """Tokens of the longest prompts that fit; 0 where the weights alone do not."""
        return max(0, int((available - self.fixed) / self.per_token))


def memory_of(sizes: Mapping, chunks: int, world: int, *, batch: int, context: int, dtype: str, engine: str) -> Memory:
    """The memory of one rank of `world`, from prompts of `context` tokens and of twice as many.

    Args:
        sizes: of the model (models.config_from_dict); its position embeddings are counted as they are, longer prompts
            or not.
        chunks: that a prompt goes through the layers in.
        engine: whose results are counted (krakenlm.latency.trace.trace).
    """
    config = dataclasses.replace(models.config_from_dict(sizes), block_size=2 * context)

    def prepare(module: nn.Module) -> None:
        if chunks > 1:
            module.chunks = chunks

    def traced(tokens: int) -> Trace:
        return trace(config, world, batch=batch, new_tokens=tokens, dtype=dtype, engine=engine, prepare=prepare)

    once, twice = traced(context), traced(2 * context)
    positions = (2 * context - sizes["block_size"]) * sizes["width"] * once.element_bytes
    per_token = (twice.kv_cache + twice.activations - once.kv_cache - once.activations) / context
    whole = once.weights - positions + once.kv_cache + once.activations
    return Memory(whole - per_token * context, per_token)
