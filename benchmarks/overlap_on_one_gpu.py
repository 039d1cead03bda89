"""Prefill on one GPU against what the card can do, and what of communication each architecture hides.

    python benchmarks/overlap_on_one_gpu.py

Needs one NVIDIA GPU with room for 6.7B parameters in float16 (16 GB or more).

1. The card's rates are measured: a matrix product in float16, and a copy. Prefill of the 1.3B and 6.7B shapes on one
   rank, batch 1, is held against the larger of the time for reading the weights once and the time for the FLOPs.
2. One of eight ranks runs alone. Each AllReduce is a kernel on a side stream that spins as long as the AllReduce would
   take (LATENCY plus the bytes that a ring moves over BANDWIDTH, assumed of a link, not measured), between the events
   that the real one would stand between. What the prefill takes longer than with every sum answered on the spot is
   exposed; the rest of their time is hidden. Kernels that end at once, between the same events, say how much of it the
   way to another stream and back takes. The three take turns. Spinning takes one multiprocessor and no memory
   bandwidth, NCCL takes more of both.
"""

import statistics

import torch
from torch import Tensor

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.recorded import RecordedPrefill
from krakenlm.inference.shards import random_rank
from krakenlm.latency.ttft import CHUNKS, built_as
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE, WORLD, Done, Group
from krakenlm.models.sizing import SHAPES, parameter_count, prefill_flops, sizes_of

CONTEXTS, RUNS, WARMUP = (128, 2048), 30, 5
RANKS, LATENCY, BANDWIDTH = 8, 10e-6, 240e9  # seconds, bytes per second
ROWS = ("standard", "standard-chunked", "parallel", "ladder", "kraken")
VOCABULARY, DTYPE = 50304, torch.float16


def seconds_of(*steps, runs: int = RUNS) -> list[float]:
    """Median time on the GPU of each step; they take turns."""
    times = [[] for _ in steps]
    for run in range(WARMUP + runs):
        for step, taken in zip(steps, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            if run >= WARMUP:
                taken.append(1e-3 * start.elapsed_time(end))
    return [statistics.median(taken) for taken in times]


def measured_rates() -> tuple[float, float]:
    """(FLOPs, bytes) per second of a large product and of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=DTYPE) for _ in range(2))
    source = torch.empty(2**29, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copy = seconds_of(lambda: a @ b, lambda: target.copy_(source))
    return 2 * 8192**3 / product, 2 * source.numel() / copy


def cycles_per_second() -> float:
    """Of the clock that torch.cuda._sleep counts by."""
    cycles = 10**7
    [seconds] = seconds_of(lambda: torch.cuda._sleep(cycles))
    return cycles / seconds


class Answered:
    """Rank 0 of RANKS ranks that are not there: a sum is this rank's part, at once."""

    rank, world = 0, RANKS

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> "Done | Spun":
        return Done(x if len(group.ranks(self.rank, self.world)) == 1 else x.clone())

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Done:
        return Done(torch.cat([x] * len(group.ranks(self.rank, self.world)), dim=dim))


class Spinning(Answered):
    """A sum is a kernel of `share` of its duration on a side stream."""

    def __init__(self, clock: float, share: float = 1.0) -> None:
        self.clock, self.share, self.stream = clock, share, torch.cuda.Stream()
        self.seconds: list[float] = []  # of every sum, whole, since this was last emptied

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> "Done | Spun":
        ranks = len(group.ranks(self.rank, self.world))
        if ranks == 1:
            return Done(x)
        took = LATENCY + 2 * (ranks - 1) / ranks * x.numel() * x.itemsize / BANDWIDTH
        self.seconds.append(took)
        total = x.clone()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(int(self.share * took * self.clock))
            finished = torch.cuda.Event()
            finished.record()
        return Spun(total, finished)


class Spun:
    """A collective under way; its result is this rank's part, since there is no other."""

    def __init__(self, total: Tensor, finished: torch.cuda.Event) -> None:
        self.total, self.finished = total, finished

    def wait(self) -> Tensor:
        torch.cuda.current_stream().wait_event(self.finished)
        return self.total


def module_of(row: str, size: str, tp: int) -> torch.nn.Module:
    shape = SHAPES[size]
    sizes = sizes_of(built_as(row), shape["width"], shape["n_head"], tp)
    lengths = {"n_layer": shape["n_layer"], "vocab_size": VOCABULARY, "block_size": max(CONTEXTS)}
    module = random_rank(models.config_from_dict(sizes | lengths), 0, tp, 0, "cuda", DTYPE)
    if row in CHUNKS:
        module.chunks = CHUNKS[row]
    return module


def prefill_seconds(module: torch.nn.Module, context: int, *comms) -> list[float]:
    """Median time of a captured prefill with each of the collectives; they take turns."""
    prompt_1T = torch.randint(VOCABULARY, (1, context), device="cuda")
    recorded = [RecordedPrefill(module, 1, context, comm, Cache(module, 1, context)) for comm in comms]
    return seconds_of(*[lambda each=each: each(prompt_1T) for each in recorded])


def against_the_card() -> None:
    flops, rate = measured_rates()
    print(f"\n{flops / 1e12:.0f} TFLOP/s, {rate / 1e9:.0f} GB/s measured\n")
    print("| size | architecture | context | prefill, ms | bytes, ms | FLOPs, ms | ratio to the larger |")
    print("|---|---|---|---|---|---|---|")
    for size in ("1.3b", "6.7b"):
        for row in ("standard", "kraken"):
            module = module_of(row, size, 1)
            sizes = module.config.to_dict()
            for context in CONTEXTS:
                [took] = prefill_seconds(module, context, ALONE)
                reading = DTYPE.itemsize * parameter_count(sizes) / rate
                computing = prefill_flops(sizes, context) / flops
                print(
                    f"| {size} | {row} | {context} | {1e3 * took:.2f} | {1e3 * reading:.2f} | {1e3 * computing:.2f} | "
                    f"{took / max(reading, computing):.2f} |"
                )


def overlap() -> None:
    clock = cycles_per_second()
    print(f"\nRank 0 of {RANKS}, 6.7B, AllReduces as spinning kernels of {1e6 * LATENCY:g} us + bytes over ", end="")
    print(f"{BANDWIDTH / 1e9:g} GB/s\n")
    print(
        "| architecture | context | at once, ms | empty, ms | spinning, ms | sums | take, ms | exposed, ms | hidden |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        module = module_of(row, "6.7b", RANKS)
        for context in CONTEXTS:
            spinning = Spinning(clock)
            without, empty, whole = prefill_seconds(module, context, Answered(), Spinning(clock, 0), spinning)
            spinning.seconds.clear()
            tokens_1T = torch.zeros(1, context, dtype=torch.int64, device="cuda")
            module(tokens_1T, spinning, Cache(module, 1, context), at=LAST)
            count, of_all, exposed = len(spinning.seconds), sum(spinning.seconds), whole - without
            print(
                f"| {row} | {context} | {1e3 * without:.2f} | {1e3 * empty:.2f} | {1e3 * whole:.2f} | {count} | "
                f"{1e3 * of_all:.2f} | {1e3 * exposed:.2f} | {1 - exposed / of_all:.0%} |"
            )


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/overlap_on_one_gpu.py: expected an NVIDIA GPU, found none")
    print(torch.cuda.get_device_name())
    with torch.inference_mode():
        against_the_card()
        overlap()


if __name__ == "__main__":
    main()
