"""A prefill recorded once per shape and replayed: on a GPU a CUDA graph, so that no kernel waits for Python."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import likeliest
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import Collectives

# Runs before a forward is captured: what libraries set up at their first call (cuBLAS's workspace, NCCL's
# communicators of each group) must not be captured.
FIRST_RUNS = 3


def cuda_graph(forward: Callable[[], object]) -> Callable[[], object]:
    """Capture what `forward` launches on the current GPU; the result launches all of it again, on the same memory.

    NCCL's collectives are captured with it: each runs on the stream of its process group, which is forked from the
    capturing stream by an event where the collective starts and joined by another where `wait` stands. The graph's
    memory comes from a pool of its own, so every buffer in it is allocated once. NCCL's watchdog thread asks for events
    meanwhile, which only the mode `thread_local` allows (torch.cuda.graph).
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(FIRST_RUNS):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        forward()
    return graph.replay


class RecordedPrefill:
    """Prefill of `batch` prompts of `context` tokens, to the likeliest next token of each.

    The tokens, the cache and the result stay in the same memory for every call; what Python counts (the cache's length)
    is counted here, since a replay does not come by it.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: int,
        context: int,
        comm: Collectives,
        cache: Cache,
        record: Callable[[Callable[[], object]], Callable[[], object]] = cuda_graph,
    ) -> None:
        """Record the forward with `record`, which maps a function to one that does again, on the same memory, what
        the function did with tensors. Every rank has to record at the same time.
        """
        self.module, self.comm, self.cache = module, comm, cache
        self.tokens_BT = torch.zeros(batch, context, dtype=torch.int64, device=cache.lengths_B.device)
        self.next_B = torch.zeros(batch, dtype=torch.int64, device=cache.lengths_B.device)
        self.replay = record(self.forward)

    def forward(self) -> None:
        self.cache.rewind()
        logits_BPV = self.module(self.tokens_BT, self.comm, self.cache, at=LAST)
        self.next_B.copy_(likeliest(logits_BPV[:, -1]))

    def __call__(self, prompts_BT: Tensor) -> Tensor:
        """The next token (B,) of prompts on any device; written over by the next call. The cache holds the prompts."""
        self.tokens_BT.copy_(prompts_BT, non_blocking=True)
        self.replay()
        self.cache.recount(self.tokens_BT.shape[1])
        return self.next_B
