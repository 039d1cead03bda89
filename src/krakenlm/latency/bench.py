"""Kernels and collectives timed on the ranks of this machine, as the engine calls them.

Every rank measures the same kernel at the same time, since ranks on one processor share its memory and caches. Weights
are read from memory, as in a forward pass, never from a cache that the last repetition has filled; on CPUs what is no
product runs behind products of as many weights as a layer has, which leave caches as a forward leaves them. Not the
shapes of a model are measured but a grid, between whose points the simulator interpolates.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.shards import random_rank
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.links import off_its_label
from krakenlm.latency.statistics import Watch
from krakenlm.latency.turns import wait_for_ranks
from krakenlm.models.blocks import causal_attention, gelu, split_heads
from krakenlm.models.collectives import Collectives
from krakenlm.models.products import pack_weight, packable, packed_product

# The grid. A head's product has one row and many columns. GPUs take larger shapes in the time of a CPU's.
ROWS, WIDTHS, HEAD = (1, 16, 64, 128, 256, 512, 1024, 2048), (64, 256, 512, 1024, 2048, 4096, 8192), 32768
CONTEXTS, HEADS, HEAD_SIZES = (16, 64, 128, 256, 512, 1024, 2048), (1, 4, 16, 32), (32, 64, 128)
BYTES = [4**k for k in range(5, 14)]  # 1 KiB to 64 MiB
MESSAGES = [2**k for k in range(8, 25)]  # 256 bytes to 16 MiB
BESIDE = [4**k for k in range(5, 12)]  # bytes of the sums that run beside products, on CPUs
TOGETHER = [4**k for k in range(8, 12)]  # the same, on GPUs: smaller ones take no time that could be told from noise
MOST_FLOPS = {"cpu": 6e9, "cuda": 4e12}  # of one kernel; the grid has no larger ones
# Sums are measured behind so many products of this width, over as many rows as the message has, or this many.
BEHIND, BEHIND_WIDTH, BEHIND_ROWS = 4, 512, 1024
SMALL_ROWS = 16  # of a product that takes a fraction of a millisecond
LAYER = 24  # of these, which read 24 MB: the weights of a layer or so
LEAST_SECONDS, REPETITIONS = 0.02, (7, 40)  # of a kernel's repetitions together, and how many
INTERRUPTED = 2.0  # times the median that a call took which something else has interrupted
# On CPUs, collectives in one run of them, seconds of the runs of one size together, and how many runs.
RUN, RUN_SECONDS, RUNS = 12, 0.5, (3, 15)
BESIDE_RUNS = 24  # of a sum beside products
SKEW_PRODUCTS, SKEW_SUMS, SKEW_RUNS = (2, 16), 12, 15  # products between two sums, few and many; sums of a run, runs
DIFFERENCES = 3  # of which the middle one counts
# Weights are taken in turn from so much memory, packed ones of one size each for themselves: more than a core's caches
# hold.
POOL_BYTES, UNCACHED_BYTES = 512 * 2**20, 128 * 2**20
# A model whose arithmetic takes next to no time.
TINY = {"architecture": "standard", "n_layer": 8, "width": 32, "n_head": 2, "vocab_size": 64, "block_size": 8}


@torch.inference_mode()
def measure(comm: Collectives, device: str, link: str, dtype: str) -> dict[str, object]:
    """Body of a rank: what the link gives, and {kernel: [[where on the grid..., seconds]]}, means over the ranks."""
    link_gbit = settle(link, comm, device)
    if off_its_label(link, link_gbit):
        return {"link_gbit": link_gbit}
    bench = Bench(comm, device, getattr(torch, dtype))
    parts = [bench.products, bench.attention, bench.moving, bench.tiny_model]
    if comm.world > 1:
        parts += [
            bench.skew,
            lambda: bench.collectives(found["skew"]),
            bench.together if bench.on_gpu else bench.beside,
        ]
    found: dict[str, object] = {"link_gbit": link_gbit, "other_load": 0.0}
    for part in parts:
        # What else ran is told of each part: a burst would be lost in the mean over minutes.
        watch = Watch()
        found |= part()
        found["other_load"] = max(found["other_load"], watch.stop(comm, device)["other_load"])
    return found


def steady(times: Iterable[float]) -> float:
    """The mean without calls that something else has interrupted: few forwards have one, and not the median one."""
    times = list(times)
    most = INTERRUPTED * median(times)
    kept = [each for each in times if each <= most]
    return sum(kept) / len(kept)


def beyond_noise(seconds: Sequence[float]) -> float:
    """Their median, 0 where fewer than three in four are above 0: such a median is noise."""
    return median(seconds) if sum(each > 0 for each in seconds) >= 0.75 * len(seconds) else 0.0


class Bench:
    """Times kernels on one rank's device while all ranks do the same."""

    def __init__(self, comm: Collectives, device: str, dtype: torch.dtype) -> None:
        self.comm, self.device, self.dtype = comm, device, dtype
        self.on_gpu = device.startswith("cuda")
        self.most_flops = MOST_FLOPS["cuda" if self.on_gpu else "cpu"]
        self.pool = torch.randn(POOL_BYTES // dtype.itemsize, device=device, dtype=dtype)
        self.offset = 0
        self.small = torch.randn(1, SMALL_ROWS, BEHIND_WIDTH, device=device, dtype=dtype)
        self.product_behind = self.product_with(BEHIND_WIDTH, BEHIND_WIDTH)

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
        self.product_behind(self.small)

    def layer_of_products(self) -> None:
        for _ in range(LAYER):
            self.small_product()

    def captured(self, function: Callable[[], object]) -> float:
        """Mean seconds of a call of a CUDA graph that has several of them, so that the host plays no part."""
        calls, replays = REPETITIONS
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a capture needs to have happened before
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # as krakenlm.inference.recorded does
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

    def products(self) -> dict[str, list]:
        """product: [m, n, k, seconds] each, of m rows of k times a weight (n, k)."""
        shapes = [*itertools.product(ROWS, WIDTHS, WIDTHS), *((1, HEAD, k) for k in WIDTHS)]
        points = []
        for m, n, k in shapes:
            if 2 * m * n * k <= self.most_flops and 2 * n * k <= len(self.pool):
                x = torch.randn(1, m, k, device=self.device, dtype=self.dtype)
                points.append([m, n, k, self.mean(partial(self.product_with(n, k), x))])
        return {"product": points}

    def product_with(self, n: int, k: int) -> Callable[[Tensor], Tensor]:
        """x (1, M, K) times a weight (n, K) as the engine has it, another one at every call."""
        # An engine's head, whose weight is the embedding, is not packed.
        if n == HEAD or not packable(self.weight(n, k)):
            return lambda x: F.linear(x, self.weight(n, k))
        count = 2 + UNCACHED_BYTES // (n * k * self.dtype.itemsize)
        weights = itertools.cycle([pack_weight(self.weight(n, k)) for _ in range(count)])
        return lambda x: packed_product(x, [next(weights)], None)

    def attention(self) -> dict[str, list]:
        """[batch, context, heads, head_size, seconds] each, of a whole prompt (attention_prefill), and of one token to
        all of them (attention_decode)."""
        found: dict[str, list] = {"attention_prefill": [], "attention_decode": []}
        for context, heads, head_size in itertools.product(CONTEXTS, HEADS, HEAD_SIZES):
            width = heads * head_size
            if 2 * width * context * context > self.most_flops:
                continue
            q, k, v = self.heads(context, heads, head_size)
            for name, queries in (("attention_prefill", q), ("attention_decode", q[:, :, -1:])):
                seconds = self.mean(lambda q=queries, k=k, v=v: causal_attention(q, k, v), self.layer_of_products)
                found[name].append([1, context, heads, head_size, seconds])
        return found

    def heads(self, context: int, heads: int, head_size: int) -> list[Tensor]:
        """Queries, keys and values (1, heads, context, head_size), as a model's product leaves them."""
        qkv = self.weight(1, context, 3 * heads * head_size)
        return [split_heads(part, heads, head_size) for part in qkv.split(heads * head_size, dim=-1)]

    def moving(self) -> dict[str, list]:
        """[bytes, seconds] each, of kernels that memory bounds."""
        found: dict[str, list] = {}
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
                seconds = self.mean(call, self.layer_of_products)
                found.setdefault(name, []).append([times * x.numel() * x.itemsize, seconds])
        return found

    def tiny_model(self) -> dict[str, object]:
        """tiny: seconds of a model's forward that has next to no arithmetic, run as the engine runs it. bare: {kernel:
        seconds} of its kernels, called in a loop as that forward is, so that the same caches are warm."""
        module = random_rank(models.config_from_dict(TINY), 0, 1, 0, self.device, self.dtype)
        context, width = TINY["block_size"], TINY["width"]
        prompts_BT = torch.zeros(1, context, dtype=torch.int64, device=self.device)
        cache = Cache(module, 1, context)
        x_BTD = torch.randn(1, context, width, device=self.device, dtype=self.dtype)
        matrix, weight = torch.randn(width, width).to(x_BTD), torch.ones(width).to(x_BTD)
        q, k, v = self.heads(context, TINY["n_head"], width // TINY["n_head"])
        bare = {
            "product": lambda: F.linear(x_BTD, matrix),
            "attention_prefill": lambda: causal_attention(q, k, v),
            "attention_decode": lambda: causal_attention(q[:, :, -1:], k, v),  # of the last layer
            "norm": lambda: F.layer_norm(x_BTD, (width,), weight),
            "gelu": lambda: gelu(x_BTD),
            "pointwise": lambda: x_BTD + x_BTD,
            "copy": lambda: q.copy_(k),
        }
        return {
            "tiny": self.mean(lambda: next(generate(module, prompts_BT, 1, cache=cache))),
            "bare": {name: self.mean(call) for name, call in bare.items()},
        }

    def skew(self) -> dict[str, float]:
        """skew: how much longer ranks wait for each other after many products than after few, as a share of the time
        that these take: the medians over runs.

        A rank is not only the slower one by its products: whichever comes first sleeps, and has to be woken. None on
        GPUs, whose ranks replay what was recorded.
        """
        if self.on_gpu:
            return {"skew": 0.0}
        x = torch.randn(1, BEHIND_ROWS // 8, BEHIND_WIDTH, device=self.device, dtype=self.dtype)

        def products(count: int) -> None:
            for _ in range(count):
                self.product_behind(x)

        def barrier() -> None:
            wait_for_ranks(self.comm, self.device)

        computed, waited = {}, {}
        for _ in range(SKEW_RUNS):
            for count in SKEW_PRODUCTS:
                run = self.side_by_side(partial(products, count), barrier, SKEW_SUMS)
                for times, found in zip(run, (computed, waited), strict=True):
                    found.setdefault(count, []).append(self.over_ranks(fmean(times)))
        few, many = SKEW_PRODUCTS
        longer, more = (median(found[many]) - median(found[few]) for found in (waited, computed))
        return {"skew": max(0.0, longer / more)}

    def side_by_side(
        self, before: Callable[[], object], collective: Callable[[], object], count: int
    ) -> tuple[list[float], list[float]]:
        """Seconds of `count` times what comes before a collective, and of as many collectives, with no barrier between
        them, as a forward has them."""
        wait_for_ranks(self.comm, self.device)
        computed, waited = [], []
        for _ in range(count):
            start = time.perf_counter()
            before()
            middle = time.perf_counter()
            collective()
            computed.append(middle - start)
            waited.append(time.perf_counter() - middle)
        return computed, waited

    def collectives(self, skew: float) -> dict[str, list]:
        """[ranks, bytes, seconds] each; a size that noise has hidden is left out."""
        found = {}
        for name in ("all_reduce", "all_gather"):
            points = [[self.comm.world, size, self.collective(name, size, skew)] for size in MESSAGES]
            found[name] = [point for point in points if point[-1] > 0]
        return found

    def collective(self, name: str, size: int, skew: float) -> float:
        """Seconds of a collective of `size` bytes, each rank's sum's or all ranks' parts' together, behind products;
        0 where noise is larger.

        On CPUs ranks stand still for it for so long, less the share `skew` of what they computed before, in runs of
        collectives with no barrier between them, as a forward has them; on GPUs recorded products take so much longer
        with it.
        """
        parts = 1 if name == "all_reduce" else self.comm.world
        x = torch.zeros(1, max(1, size // (parts * self.dtype.itemsize)), device=self.device, dtype=self.dtype)
        call = self.comm.all_reduce if name == "all_reduce" else lambda x: self.comm.all_gather(x, dim=-1)
        rows = min(BEHIND_ROWS, max(1, size // (BEHIND_WIDTH * self.dtype.itemsize)))
        before = torch.randn(1, rows, BEHIND_WIDTH, device=self.device, dtype=self.dtype)

        def products() -> None:
            for _ in range(BEHIND):
                self.product_behind(before)

        def both() -> None:
            products()
            call(x).wait()

        if self.on_gpu:
            return beyond_noise([self.mean(both) - self.mean(products) for _ in range(DIFFERENCES)])
        return beyond_noise(self.stood_still(products, lambda: call(x).wait(), skew))

    def stood_still(self, before: Callable[[], object], collective: Callable[[], object], skew: float) -> list[float]:
        """Seconds of a collective beyond the share `skew` of what is computed before it, the mean of each run of as
        many as a forward has: a forward is a sum over its collectives, and its time the median of forwards."""

        def run() -> float:
            computed, waited = self.side_by_side(before, collective, RUN)
            return self.over_ranks(fmean(waited) - skew * fmean(computed))

        # The ranks have to agree on how often.
        once = self.over_ranks(sum(map(sum, self.side_by_side(before, collective, RUN))))
        least, most = RUNS
        return [run() for _ in range(int(max(least, min(most, RUN_SECONDS / once))))]

    def beside(self) -> dict[str, list]:
        """On CPUs: [ranks, bytes, seconds] each, of sums beside products, and of what they take from these."""
        beside = [(size, *self.sum_beside(size)) for size in BESIDE]
        return {
            "all_reduce_beside": [[self.comm.world, size, seconds] for size, seconds, _ in beside],
            "all_reduce_taken": [[self.comm.world, size, taken] for size, _, taken in beside],
        }

    def sum_beside(self, size: int) -> tuple[float, float]:
        """Seconds that a sum of `size` bytes takes while every rank computes, and how many of them it takes
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

    def together(self) -> dict[str, list]:
        """On GPUs: overlap, samples of krakenlm.latency.calibrate.overlap."""
        return {"overlap": [self.sum_together(size) for size in TOGETHER]}

    def sum_together(self, size: int) -> list[float]:
        """Seconds of products and of a sum of `size` bytes, alone and beside each other (see `overlap`)."""
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
