"""Kernels and collectives timed on the ranks of this machine, as the engine calls them.

Every rank measures the same kernel at the same time, since ranks on one processor share its memory and caches. Weights
are read from memory, as in a forward pass, never from a cache that the last repetition has filled; on CPUs what is no
product runs behind one, which leaves caches as a forward leaves them. Not the shapes of a model are measured but a
grid, between whose points the simulator interpolates.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.shards import random_rank
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.links import off_its_label
from krakenlm.latency.statistics import Watch
from krakenlm.latency.turns import slowest, wait_for_ranks
from krakenlm.models.blocks import causal_attention, gelu, split_heads
from krakenlm.models.collectives import Collectives

# The grid. A head's product has one row and many columns. GPUs take larger shapes in the time of a CPU's.
ROWS, WIDTHS, HEAD = (1, 16, 64, 128, 256, 512, 1024, 2048), (64, 256, 512, 1024, 2048, 4096, 8192), 32768
CONTEXTS, HEADS, HEAD_SIZES = (16, 64, 128, 256, 512, 1024, 2048), (1, 4, 16, 32), (32, 64, 128)
BYTES = [4**k for k in range(5, 14)]  # 1 KiB to 64 MiB
MESSAGES = [2**k for k in range(8, 25)]  # 256 bytes to 16 MiB
BESIDE = [4**k for k in range(5, 12)]  # bytes of the sums that run beside products
MOST_FLOPS = {"cpu": 6e9, "cuda": 4e12}  # of one kernel; the grid has no larger ones
# Sums are measured behind so many products of this width, over as many rows as the message has, or this many.
BEHIND, BEHIND_WIDTH, BEHIND_ROWS = 4, 512, 1024
SMALL_ROWS = 16  # of a product that takes a fraction of a millisecond
LEAST_SECONDS, REPETITIONS = 0.02, (7, 40)  # of a kernel's repetitions together, and how many
INTERRUPTED = 2.0  # times the median that a call took which something else has interrupted
# On CPUs, collectives in one run of them, seconds of the runs of one size together, and how many runs.
RUN, RUN_SECONDS, RUNS = 12, 0.5, (3, 15)
BESIDE_RUNS = 24  # of a sum beside products
SKEW_PRODUCTS, SKEW_RUNS = 8, 40  # products between two sums, about, and how often
ATTEMPTS = 3  # at a difference that noise has hidden
POOL_BYTES = 512 * 2**20  # of memory that weights are taken from in turn: more than caches hold
# A model whose arithmetic takes next to no time.
TINY = {"architecture": "standard", "n_layer": 8, "width": 32, "n_head": 2, "vocab_size": 64, "block_size": 8}


@torch.inference_mode()
def measure(comm: Collectives, device: str, link: str, dtype: str) -> dict[str, object]:
    """Body of a rank: what the link gives, and {kernel: [[where on the grid..., seconds]]}, means over the ranks."""
    link_gbit = settle(link, comm, device)
    if off_its_label(link, link_gbit):
        return {"link_gbit": link_gbit}
    watch, bench = Watch(), Bench(comm, device, getattr(torch, dtype))
    found: dict[str, object] = {
        "link_gbit": link_gbit,
        "product": list(bench.products()),
        "attention_prefill": list(bench.attention(whole=True)),
        "attention_decode": list(bench.attention(whole=False)),
        "tiny": bench.tiny_model(dtype),
    }
    for name, points in bench.moving():
        found.setdefault(name, []).append(points)
    if comm.world > 1:
        found["skew"] = bench.skew()
        for name in ("all_reduce", "all_gather"):
            found[name] = [[comm.world, size, bench.collective(name, size, found["skew"])] for size in MESSAGES]
        if bench.on_gpu:
            found["overlap"] = [bench.together(size) for size in BESIDE]
        else:
            beside = [(size, *bench.beside(size)) for size in BESIDE]
            found["all_reduce_beside"] = [[comm.world, size, seconds] for size, seconds, _ in beside]
            found["all_reduce_taken"] = [[comm.world, size, taken] for size, _, taken in beside]
    return found | watch.stop(comm, device)


def steady(times: Iterable[float]) -> float:
    """The mean without calls that something else has interrupted: few forwards have one, and not the median one."""
    times = list(times)
    most = INTERRUPTED * median(times)
    kept = [each for each in times if each <= most]
    return sum(kept) / len(kept)


class Bench:
    """Times kernels on one rank's device while all ranks do the same."""

    def __init__(self, comm: Collectives, device: str, dtype: torch.dtype) -> None:
        self.comm, self.device, self.dtype = comm, device, dtype
        self.on_gpu = device.startswith("cuda")
        self.most_flops = MOST_FLOPS["cuda" if self.on_gpu else "cpu"]
        self.pool = torch.randn(POOL_BYTES // dtype.itemsize, device=device, dtype=dtype)
        self.offset = 0
        self.small = torch.randn(SMALL_ROWS, BEHIND_WIDTH, device=device, dtype=dtype)

    def weight(self, *shape: int) -> Tensor:
        """A tensor that no recent call has read."""
        size = math.prod(shape)
        if self.offset + size > len(self.pool):
            self.offset = 0
        start, self.offset = self.offset, self.offset + size
        return self.pool[start : start + size].view(shape)

    def mean(self, function: Callable[[], object], behind: Callable[[], object] | None = None) -> float:
        """Mean seconds of a call (`steady`), the mean of that over ranks: a forward is a sum of many calls.

        Args:
            behind: on CPUs, what runs before each call and is not timed.
        """
        wait_for_ranks(self.comm, self.device)
        if self.on_gpu:
            return self.over_ranks(self.captured(function))

        def once() -> float:
            if behind is not None:
                behind()
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        once()
        least, most = REPETITIONS
        # The ranks have to agree on how often.
        count = int(max(least, min(most, LEAST_SECONDS / max(self.over_ranks(once()), 1e-7))))
        return self.over_ranks(steady(once() for _ in range(count)))

    def small_product(self) -> None:
        """One that reads a weight of a megabyte or so, and takes a fraction of a millisecond."""
        F.linear(self.small, self.weight(BEHIND_WIDTH, BEHIND_WIDTH))

    def captured(self, function: Callable[[], object]) -> float:
        """Mean seconds of a call of a CUDA graph that has several of them, so that the host plays no part."""
        calls, replays = REPETITIONS
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a capture needs to have happened before
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
        times = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1e-3 * start.elapsed_time(end) / calls)
        return steady(times)

    def over_ranks(self, value: float) -> float:
        """The mean of every rank's value."""
        return self.comm.all_reduce(torch.tensor([value], device=self.device)).wait().item() / self.comm.world

    def products(self) -> Iterator[list]:
        """[m, n, k, seconds]: m rows of k times a weight (n, k)."""
        shapes = [*itertools.product(ROWS, WIDTHS, WIDTHS), *((1, HEAD, k) for k in WIDTHS)]
        for m, n, k in shapes:
            if 2 * m * n * k <= self.most_flops and 2 * n * k <= len(self.pool):
                x = torch.randn(1, m, k, device=self.device, dtype=self.dtype)
                yield [m, n, k, self.mean(lambda x=x, n=n, k=k: F.linear(x, self.weight(n, k)))]

    def attention(self, whole: bool) -> Iterator[list]:
        """[batch, context, heads, head_size, seconds]: of a whole prompt, or of one token to all of them."""
        for context, heads, head_size in itertools.product(CONTEXTS, HEADS, HEAD_SIZES):
            width = heads * head_size
            if 2 * width * context * context > self.most_flops:
                continue
            qkv = self.weight(1, context, 3 * width)
            q, k, v = (split_heads(part, heads, head_size) for part in qkv.split(width, dim=-1))
            q = q if whole else q[:, :, -1:]
            seconds = self.mean(lambda q=q, k=k, v=v: causal_attention(q, k, v), self.small_product)
            yield [1, context, heads, head_size, seconds]

    def moving(self) -> Iterator[tuple[str, list]]:
        """(kernel, [bytes, seconds]) of kernels that memory bounds."""
        for size in BYTES:
            # Rows of 1024 elements, as many as make the kernel read and write `size` bytes.
            def rows(times: int, size: int = size) -> Tensor:
                count = max(1, size // (times * 1024 * self.dtype.itemsize))
                return torch.randn(count, 1024, device=self.device, dtype=self.dtype)

            one, two, weight = rows(2), rows(3), torch.ones(1024, device=self.device, dtype=self.dtype)
            # Written where it lies heads by heads, as keys and values are.
            heads = torch.empty(1, 16, len(one), 64, device=self.device, dtype=self.dtype)
            calls = {
                "norm": (one, 2, lambda x=one, w=weight: F.layer_norm(x, (1024,), w)),
                "gelu": (one, 2, lambda x=one: gelu(x)),
                "pointwise": (two, 3, lambda x=two: x + x),
                "copy": (one, 2, lambda x=one, y=heads: y.copy_(split_heads(x[None], 16, 64))),
            }
            for name, (x, times, call) in calls.items():
                yield name, [times * x.numel() * x.itemsize, self.mean(call, self.small_product)]

    def tiny_model(self, dtype: str) -> float:
        """Seconds of a model's forward that has next to no arithmetic, run as the engine runs it."""
        module = random_rank(models.config_from_dict(TINY), 0, 1, 0, self.device, getattr(torch, dtype))
        prompts_BT = torch.zeros(1, TINY["block_size"], dtype=torch.int64, device=self.device)
        cache = Cache(module, 1, TINY["block_size"])
        return self.mean(lambda: next(generate(module, prompts_BT, 1, cache=cache)))

    def skew(self) -> float:
        """How much longer the slowest rank takes over products between two sums than all ranks in the mean, as a share.

        None on GPUs, whose ranks replay what was recorded.
        """
        if self.on_gpu:
            return 0.0
        x = torch.randn(BEHIND_ROWS // 8, BEHIND_WIDTH, device=self.device, dtype=self.dtype)
        shares = []
        for _ in range(SKEW_RUNS):
            wait_for_ranks(self.comm, self.device)
            start = time.perf_counter()
            for _ in range(SKEW_PRODUCTS):
                F.linear(x, self.weight(BEHIND_WIDTH, BEHIND_WIDTH))
            own = time.perf_counter() - start
            shares.append(slowest(own, self.comm, self.device) / self.over_ranks(own) - 1)
        return sum(shares) / len(shares)

    def collective(self, name: str, size: int, skew: float) -> float:
        """Seconds of a collective of `size` bytes, each rank's sum's or all ranks' parts' together, behind products.

        On CPUs ranks stand still for it for so long, less what their products' `skew` explains, in runs of collectives
        with no barrier between them, as a forward has them; on GPUs recorded products take so much longer with it.

        Raises:
            InputError: the products took no longer with the collective, however often that was measured.
        """
        parts = 1 if name == "all_reduce" else self.comm.world
        x = torch.zeros(1, max(1, size // (parts * self.dtype.itemsize)), device=self.device, dtype=self.dtype)
        call = self.comm.all_reduce if name == "all_reduce" else lambda x: self.comm.all_gather(x, dim=-1)
        rows = min(BEHIND_ROWS, max(1, size // (BEHIND_WIDTH * self.dtype.itemsize)))
        before = torch.randn(rows, BEHIND_WIDTH, device=self.device, dtype=self.dtype)

        def products() -> None:
            for _ in range(BEHIND):
                F.linear(before, self.weight(BEHIND_WIDTH, BEHIND_WIDTH))

        def both() -> None:
            products()
            call(x).wait()

        for _ in range(ATTEMPTS):
            if self.on_gpu:
                longer = self.mean(both) - self.mean(products)
            else:
                computed, waited = self.waited(products, lambda: call(x).wait())
                longer = waited - skew * computed
            if longer > 0:
                return longer
        raise InputError(
            f"calibrate: expected {name} of {size} bytes to take time behind products, found none in {ATTEMPTS} "
            "measurements; measure once more while nothing else runs"
        )

    def waited(self, before: Callable[[], object], collective: Callable[[], object]) -> tuple[float, float]:
        """Seconds of what comes before a collective, and of the collective, in a run of as many as a forward has: the
        medians of runs' means, the means of those over ranks.

        A forward is a sum over its collectives, and its time the median of forwards.
        """

        def run() -> tuple[float, float]:
            wait_for_ranks(self.comm, self.device)
            computed = seconds = 0.0
            for _ in range(RUN):
                start = time.perf_counter()
                before()
                middle = time.perf_counter()
                collective()
                computed += middle - start
                seconds += time.perf_counter() - middle
            return computed / RUN, seconds / RUN

        once = self.over_ranks(RUN * sum(run()))  # the ranks have to agree on how often
        least, most = RUNS
        runs = [run() for _ in range(int(max(least, min(most, RUN_SECONDS / once))))]
        computed, seconds = (self.over_ranks(median(each)) for each in zip(*runs, strict=True))
        return computed, seconds

    def beside(self, size: int) -> tuple[float, float]:
        """On CPUs: seconds that a sum of `size` bytes takes while every rank computes, and how many of them it takes
        from what is computed: small products until the sum has ended, then as many without a sum.
        """
        summed = torch.zeros(size // self.dtype.itemsize, dtype=self.dtype)
        seconds, taken = [], []
        for _ in range(BESIDE_RUNS):
            wait_for_ranks(self.comm, self.device)
            start, products = time.perf_counter(), 0
            pending = self.comm.all_reduce(summed)
            while not (pending.done() and products):
                self.small_product()
                products += 1
            seconds.append(time.perf_counter() - start)
            pending.wait()
            wait_for_ranks(self.comm, self.device)
            start = time.perf_counter()
            for _ in range(products):
                self.small_product()
            taken.append(seconds[-1] - (time.perf_counter() - start))
        return self.over_ranks(steady(seconds)), max(self.over_ranks(median(taken)), 1e-6)

    def together(self, size: int) -> list[float]:
        """On GPUs: seconds of products and of a sum of `size` bytes, alone and beside each other (see `overlap`)."""
        summed = torch.zeros(size // self.dtype.itemsize, device=self.device, dtype=self.dtype)
        x = torch.randn(64, 512, device=self.device, dtype=self.dtype)
        one = self.mean(lambda: F.linear(x, self.weight(512, 512)))
        alone = self.mean(lambda: self.comm.all_reduce(summed).wait())
        found = []
        for share in (4.0, 0.5):  # of the sum's time: products that outlast it, and products that it outlasts
            count = max(1, round(share * alone / one))

            def products(count: int = count) -> None:
                for _ in range(count):
                    F.linear(x, self.weight(512, 512))

            def both(products: Callable[[], None] = products) -> None:
                pending = self.comm.all_reduce(summed)
                products()
                pending.wait()

            found += [self.mean(products), alone, self.mean(both)]
        return found
