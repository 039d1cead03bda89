"""A prefill captured as a CUDA graph is the prefill, with collectives on another stream too."""

import pytest
import torch
from gpu_cases import ARCHITECTURES, DEVICE, ROWS, SHAPES, by_path, drawn, on_gpu, tokens

from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.recorded import RecordedPrefill, cuda_graph
from krakenlm.models.blocks import ALL, LAST
from krakenlm.models.collectives import ALONE, WORLD, Done

overlap = by_path("benchmarks/overlap_on_one_gpu.py")
CONTEXT, CAPACITY = 70, 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", ROWS)
@torch.inference_mode()
def test_replays_give_the_tokens_and_the_cache_of_each_prompt(row, shape, dtype):
    module = on_gpu(drawn(row, shape), dtype)
    cache, own = Cache(module, 2, CAPACITY), Cache(module, 2, CAPACITY)
    recorded = RecordedPrefill(module, 2, CONTEXT, ALONE, cache)
    chosen = []
    for seed in (1, 2):
        prompts_BT = tokens(2, CONTEXT, seed)
        expected = list(generate(module, prompts_BT.to(DEVICE), 4, cache=own))
        token_B = recorded(prompts_BT)
        for place, wanted_B in enumerate(expected):
            assert token_B.tolist() == wanted_B.tolist(), f"token {place} of prompts {seed}"
            if place + 1 < len(expected):
                token_B = module(token_B[:, None], ALONE, cache, at=LAST)[:, -1].argmax(-1)
        chosen.append(expected[0].tolist())
        assert cache.lengths_B.tolist() == own.lengths_B.tolist() == [CONTEXT + 3] * 2
        close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
        torch.testing.assert_close(cache.keys, own.keys, **close)
        torch.testing.assert_close(cache.values, own.values, **close)
    assert chosen[0] != chosen[1], "both prompts have the same next tokens: nothing is shown"


class Sequential:
    """What `overlap.Spinning` gives, with no other stream: rank 0 of two, of whom the other one adds nothing."""

    rank, world = 0, 2

    def all_reduce(self, x, group=WORLD):
        return Done(x.clone())

    def all_gather(self, x, dim, group=WORLD):
        return Done(torch.cat([x] * 2, dim=dim))


class Late(overlap.Spinning):
    """The sum itself is written on the other stream, after the spinning: whoever reads it too early reads zeros."""

    def all_reduce(self, x, group=WORLD):
        if len(group.ranks(self.rank, self.world)) == 1:
            return Done(x)
        total = torch.zeros_like(x, memory_format=torch.contiguous_format)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(int(overlap.LATENCY * self.clock))
            total.copy_(x)
            finished = torch.cuda.Event()
            finished.record()
        return Held(total, finished, x)


class Held(overlap.Spun):
    """A collective under way that keeps what it reads until it is waited for, as torch.distributed's does."""

    def __init__(self, total, finished, x):
        super().__init__(total, finished)
        self.x = x

    def wait(self):
        total = super().wait()
        self.x = None
        return total


@pytest.fixture(scope="module")
def clock():
    """Cycles in a second of which each collective takes five times as long as on its link."""
    return 5 * overlap.cycles_per_second()


@pytest.mark.parametrize("kind", [overlap.Spinning, Late])
@pytest.mark.parametrize("shape", ["heads of 15", "heads of 32"])
@pytest.mark.parametrize("row", ROWS)
@torch.inference_mode()
def test_collectives_on_another_stream_change_no_logit_recorded_or_not(row, shape, kind, clock):
    module = on_gpu(drawn(row, shape, rank=0, world=2))
    comm = kind(clock)
    comm.world = 2
    tokens_BT = torch.zeros(1, CONTEXT, dtype=torch.int64, device=DEVICE)
    cache, own = (Cache(module, 1, CONTEXT) for _ in range(2))
    logits_BTV = torch.zeros(1, CONTEXT, module.config.vocab_size, device=DEVICE)

    def forward():
        cache.rewind()
        logits_BTV.copy_(module(tokens_BT, comm, cache, at=ALL))

    replay = cuda_graph(forward)
    for seed in (1, 2):
        tokens_BT.copy_(tokens(1, CONTEXT, seed))
        own.rewind()
        expected = module(tokens_BT, Sequential(), own, at=ALL)
        for what, run in {"recorded": replay, "operation by operation": forward}.items():
            logits_BTV.zero_()
            run()
            torch.testing.assert_close(
                logits_BTV, expected, atol=1e-5, rtol=1e-5, msg=lambda told, what=what: f"{what}: {told}"
            )
            torch.testing.assert_close(cache.keys, own.keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_recorded_prefill_with_collectives_under_way_gives_the_same_next_tokens(architecture, clock):
    module = on_gpu(drawn(architecture, "heads of 32", rank=0, world=2))
    comm = overlap.Spinning(clock)
    comm.world = 2
    recorded = RecordedPrefill(module, 1, CONTEXT, comm, Cache(module, 1, CONTEXT))
    for seed in (1, 2):
        prompt_1T = tokens(1, CONTEXT, seed)
        expected = next(generate(module, prompt_1T.to(DEVICE), 1, Sequential()))
        assert recorded(prompt_1T).tolist() == expected.tolist()
    assert comm.seconds
    assert min(comm.seconds) > 0
