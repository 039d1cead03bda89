"""A hardware description of this machine, measured: kernels as the engine calls them, collectives, and what they cost
each other.

Every rank measures the same kernel at the same time, since ranks on one processor share its memory and caches; on CPUs
also one rank alone. Weights are read from memory, as in a forward pass, never from a cache that the last repetition
has filled. Not the shapes of a model are measured but a grid, between whose points the simulator interpolates.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import random_rank
from krakenlm.latency import hardware, kernels
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.hardware import Hardware, Overlap, quantity, table_models
from krakenlm.latency.kernels import Table
from krakenlm.latency.links import LOOPBACK, LinkError, network, off_its_label
from krakenlm.latency.trace import trace
from krakenlm.latency.turns import wait_for_ranks
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.blocks import causal_attention, gelu, split_heads
from krakenlm.models.collectives import Collectives

AXES = {
    "product": ("m", "n", "k"),
    "attention_prefill": ("batch", "context", "heads", "head_size"),
    "attention_decode": ("batch", "context", "heads", "head_size"),
    **dict.fromkeys(("norm", "gelu", "pointwise", "copy"), ("bytes",)),
    **dict.fromkeys(("all_reduce", "all_gather"), ("ranks", "bytes")),
}
# The grid. A head's product has one row and many columns. GPUs take larger shapes in the time of a CPU's.
ROWS, WIDTHS, HEAD = (1, 16, 64, 128, 256, 512, 1024, 2048), (64, 256, 512, 1024, 2048, 4096, 8192), 32768
CONTEXTS, HEADS, HEAD_SIZES = (16, 64, 128, 256, 512, 1024, 2048), (1, 4, 16, 32), (32, 64, 128)
BYTES = [4**k for k in range(5, 14)]  # 1 KiB to 64 MiB
MESSAGES = [2**k for k in range(8, 25)]  # 256 bytes to 16 MiB
OVERLAPPED = [4**k for k in range(8, 12)]  # bytes of the sums that run beside products
MOST_FLOPS = {"cpu": 6e9, "cuda": 4e12}  # of one kernel; the grid has no larger ones
# Sums are measured behind so many products of this width, over as many rows as the message has, or this many.
BEHIND, BEHIND_WIDTH, BEHIND_ROWS = 4, 512, 1024
LEAST_SECONDS, REPETITIONS = 0.02, (7, 40)  # of a kernel's repetitions together, and how many
OVERLAP_SECONDS = 0.4  # of repetitions where streams run beside each other
# On CPUs, collectives in one run of them, seconds of the runs of one size together, and how many runs.
RUN, RUN_SECONDS, RUNS = 12, 0.5, (3, 15)
POOL_BYTES = 512 * 2**20  # of memory that weights are taken from in turn: more than caches hold
# A model whose arithmetic takes next to no time.
TINY = {"architecture": "standard", "n_layer": 8, "width": 32, "n_head": 2, "vocab_size": 64, "block_size": 8}


def calibrate(out_yaml: str | Path, *, ranks: int, threads: int, link: str, dtype: str) -> None:
    """Measure this machine with `ranks` ranks of `threads` threads, and write its description.

    Args:
        link: between CPU ranks: loopback, or a rate such as 1gbit (krakenlm.latency.links).

    Raises:
        InputError: this machine has fewer cores or GPUs than the ranks need, or not the link.
    """
    gpus = torch.cuda.device_count()
    refuse_missing_ranks("--ranks", ranks, threads, gpus)
    on_gpus = gpus >= ranks
    counts = [ranks] if on_gpus else sorted({1, ranks})
    measured = {count: measure_over(link if count > 1 else LOOPBACK, count, threads, dtype) for count in counts}
    source = f"measured on {time.strftime('%Y-%m-%d')} by krakenlm hardware calibrate"
    about, tables = tables_of(measured, dtype, source)
    out_yaml = Path(out_yaml)
    file = Path("kernels") / f"{out_yaml.stem}.json"
    kernels.write_tables(out_yaml.parent / file, about, tables)
    joined = "NCCL" if on_gpus else f"gloo over {link}"
    title = f"{machine.device()}; {ranks} rank(s) of {threads} thread(s)" + (f", {joined}" if ranks > 1 else "")
    described = description(measured, about, tables, title, dtype, source)
    comment = f"Made by: krakenlm hardware calibrate --ranks {ranks} --threads {threads} --link {link} --dtype {dtype}"
    hardware.write(out_yaml, {**described, "kernels": str(file)}, comment)
    hardware.load(out_yaml)


def measure_over(link: str, ranks: int, threads: int, dtype: str) -> dict:
    """What the ranks measured, joined by `link`."""
    arguments = {"link": link, "dtype": dtype}
    try:
        with network(link, ranks) as joined:
            found = run_ranks("krakenlm.latency.calibrate:measure", arguments, ranks, threads, joined)
    except LinkError as error:
        raise InputError(f"link: expected one that can be had here, found {link} ({error}); use loopback") from None
    if off_its_label(link, found["link_gbit"]):
        raise InputError(f"link: expected {link}, found {found['link_gbit']:.2f} Gbit/s; try a quieter machine")
    return found


def tables_of(measured: Mapping[int, Mapping], dtype: str, source: str) -> tuple[dict, dict[str, Table]]:
    """What the file of tables says of itself, and the tables: with an axis `busy` where ranks share a processor."""
    most = max(measured)
    products = measured[most]["product"]
    size = getattr(torch, dtype).itemsize
    reference = {
        "flops": max(2 * m * n * k / s for m, n, k, s in products),
        "bytes": max(moved / s for moved, s in measured[most]["copy"]),
        "launch": min(s for *_, s in measured[most]["pointwise"]),
    }
    if most > 1:
        sums = measured[most]["all_reduce"]
        fastest = max(2 * (n - 1) / n * moved / s for n, moved, s in sums)
        reference["link"] = {"bandwidth": fastest, "latency": min(s / (2 * math.log2(n)) for n, _, s in sums)}
    about = {
        "source": source,
        "device": machine.device(),
        "versions": {"torch": torch.__version__},
        "dtypes": [dtype],
        "element_bytes": size,
        "reference": reference,
    }
    models_of = table_models(about | {"tables": dict.fromkeys(measured[most])})
    tables = {}
    for name, axes in AXES.items():
        counts = [count for count in measured if measured[count].get(name)]
        points = {(count, *at): seconds for count in counts for *at, seconds in measured[count][name]}
        if name in ("all_reduce", "all_gather") or len(counts) == 1:
            points = {at[1:]: seconds for at, seconds in points.items()}
        else:
            axes = ("busy", *axes)
        if points:
            tables[name] = kernels.whole_table(points, axes, models_of[name])
    return about, tables


def description(
    measured: Mapping[int, Mapping], about: Mapping, tables: Mapping, title: str, dtype: str, source: str
) -> dict:
    """The keys of a hardware file."""
    reference, ranks = about["reference"], max(measured)
    memory = machine.memory_of_a_rank(ranks)
    described = {
        "title": title,
        "engine": "torch",
        "devices": quantity(ranks, "devices", "ranks that were measured together"),
        "memory": quantity(memory / 1e9, "GB", "of the device, or the machine's over the ranks"),
        "reserved": quantity(0, "GB", "none beside the process itself"),
        "memory_bandwidth": quantity(reference["bytes"] / 1e9, "GB/s", f"{source}: the fastest copy"),
        "memory_bandwidth_reached": quantity(1, "share", "the bandwidth above was reached"),
        "peak": {dtype: quantity(reference["flops"] / 1e12, "TFLOP/s", f"{source}: the fastest product")},
        "launch": quantity(reference["launch"] * 1e6, "us", f"{source}: the quickest addition"),
        "dispatch": quantity(1e6 * dispatch(measured[ranks]["tiny"], about, tables, dtype), "us", source),
        "overlap": {
            "compute": quantity(1, "times", "one rank has no communication"),
            "communication": quantity(1, "times", "one rank has no communication"),
        },
    }
    if ranks > 1:
        link, factors = reference["link"], overlap(measured[ranks]["overlap"])
        described["inside"] = {
            "bandwidth": quantity(link["bandwidth"] / 1e9, "GB/s", f"{source}: the fastest AllReduce"),
            "latency": quantity(link["latency"] * 1e6, "us", f"{source}: the quickest AllReduce"),
        }
        described["overlap"] = {
            "compute": quantity(factors.compute, "times", source),
            "communication": quantity(factors.communication, "times", source),
        }
    return described


def dispatch(seconds: float, about: Mapping, tables: Mapping, dtype: str) -> float:
    """Seconds that an operation takes beside its kernel, in the module and function calls around it: what a model of
    next to no arithmetic takes beyond its kernels, over their number."""
    reference = about["reference"]
    bare = Hardware(
        name="", title="", engine="torch", devices=1, memory=0, reserved=0, bandwidth=reference["bytes"],
        peak={dtype: reference["flops"]}, launch=reference["launch"], dispatch=0.0, inside=None, between=None,
        overlap=Overlap(), tables=tables, table_launch=reference["launch"], table_dtypes=(dtype,),
    )  # fmt: skip
    traced = trace(models.config_from_dict(TINY), batch=1, new_tokens=TINY["block_size"], dtype=dtype)
    kernels_alone = sum(bare.seconds(each, 1) for each in traced.operations)
    return max(0.0, (seconds - kernels_alone) / len(traced.operations))


def overlap(samples: Sequence[Sequence[float]]) -> Overlap:
    """How much compute and communication slow each other, from runs of both together.

    Of each (C, M, T, c, m, t): with C seconds of products and M of a sum, the products outlasting the sum, both take T;
    with c and m, the sum outlasting the products, t. If products take x times as long beside a sum and sums y times as
    long beside products, a = (T - C) / M = y (1 - 1 / x) and b = (t - m) / c = x (1 - 1 / y).
    """
    factors = []
    for compute, summed, both, short_compute, long_summed, both_short in samples:
        a = min(max(0.0, (both - compute) / summed), 0.95)
        b = min(max(0.0, (both_short - long_summed) / short_compute), 0.95)
        x = (1 - a * b) / (1 - a)
        factors.append((x, x / (x - b)))
    return Overlap(*(sorted(each)[len(each) // 2] for each in zip(*factors, strict=True)))


@torch.inference_mode()
def measure(comm: Collectives, device: str, link: str, dtype: str) -> dict[str, object]:
    """Body of a rank: what the link gives, and {kernel: [[where on the grid..., seconds]]}, means over the ranks."""
    link_gbit = settle(link, comm, device)
    if off_its_label(link, link_gbit):
        return {"link_gbit": link_gbit}
    bench = Bench(comm, device, getattr(torch, dtype))
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
        found["all_reduce"] = [[comm.world, size, bench.collective("all_reduce", size)] for size in MESSAGES]
        found["all_gather"] = [[comm.world, size, bench.collective("all_gather", size)] for size in MESSAGES]
        found["overlap"] = [bench.together(size) for size in OVERLAPPED]
    return found


def steady(times: Iterable[float]) -> float:
    """The mean without the slowest tenth, one at least: what a machine does otherwise now and then is no kernel's."""
    times = sorted(times)
    kept = times[: max(1, len(times) - max(1, len(times) // 10))]
    return sum(kept) / len(kept)


class Bench:
    """Times kernels on one rank's device while all ranks do the same."""

    def __init__(self, comm: Collectives, device: str, dtype: torch.dtype) -> None:
        self.comm, self.device, self.dtype = comm, device, dtype
        self.on_gpu = device.startswith("cuda")
        self.most_flops = MOST_FLOPS["cuda" if self.on_gpu else "cpu"]
        self.pool = torch.randn(POOL_BYTES // dtype.itemsize, device=device, dtype=dtype)
        self.offset = 0

    def weight(self, *shape: int) -> Tensor:
        """A tensor that no recent call has read."""
        size = math.prod(shape)
        if self.offset + size > len(self.pool):
            self.offset = 0
        start, self.offset = self.offset, self.offset + size
        return self.pool[start : start + size].view(shape)

    def mean(self, function: Callable[[], object], together: bool = False, seconds: float = LEAST_SECONDS) -> float:
        """Mean seconds of a call without the slowest tenth, the mean of that over ranks.

        A mean, since a forward is a sum of many calls; with `together` each call starts at a barrier. `seconds` is how
        long the calls take together, within REPETITIONS.
        """
        wait_for_ranks(self.comm, self.device)
        if self.on_gpu:
            return self.over_ranks(self.captured(function))

        def once() -> float:
            if together:
                wait_for_ranks(self.comm, self.device)
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        once()
        least, most = REPETITIONS
        # The ranks have to agree on how often.
        count = int(max(least, min(most, seconds / max(self.over_ranks(once()), 1e-7))))
        return self.over_ranks(steady(once() for _ in range(count)))

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
            yield [1, context, heads, head_size, self.mean(lambda q=q, k=k, v=v: causal_attention(q, k, v))]

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
                yield name, [times * x.numel() * x.itemsize, self.mean(call)]

    def tiny_model(self, dtype: str) -> float:
        """Seconds of a model's forward that has next to no arithmetic, run as the engine runs it."""
        module = random_rank(models.config_from_dict(TINY), 0, 1, 0, self.device, getattr(torch, dtype))
        prompts_BT = torch.zeros(1, TINY["block_size"], dtype=torch.int64, device=self.device)
        cache = Cache(module, 1, TINY["block_size"])
        return self.mean(lambda: next(generate(module, prompts_BT, 1, cache=cache)))

    def collective(self, name: str, size: int) -> float:
        """Seconds that ranks stand still for a collective of `size` bytes behind products: of each rank's sum, of all
        ranks' parts together.

        So that what ranks wait for each other, none being as quick as the others every time, is part of it, as in a
        layer. On CPUs the wait itself is timed, in runs of collectives with no barrier between them, as a forward has
        them; on GPUs it is what the recorded products take longer with the collective, whatever noise makes of that.

        Raises:
            InputError: the products took no longer with the collective.
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

        if not self.on_gpu:
            return self.waited(products, lambda: call(x).wait())
        longer = self.mean(both) - self.mean(products)
        if longer <= 0:
            raise InputError(f"--ranks: expected {name} of {size} bytes to take time, found none; measure once more")
        return longer

    def waited(self, before: Callable[[], object], collective: Callable[[], object]) -> float:
        """Seconds of a collective behind what comes before it, in a run of as many as a forward has: the median of
        runs' means, the mean of that over ranks.

        A forward is a sum over its collectives, and its time the median of forwards.
        """

        def run() -> float:
            wait_for_ranks(self.comm, self.device)
            seconds = 0.0
            for _ in range(RUN):
                before()
                start = time.perf_counter()
                collective()
                seconds += time.perf_counter() - start
            return seconds / RUN

        start = time.perf_counter()
        run()
        once = self.over_ranks(time.perf_counter() - start)  # the ranks have to agree on how often
        least, most = RUNS
        return self.over_ranks(median(run() for _ in range(int(max(least, min(most, RUN_SECONDS / once))))))

    def together(self, size: int) -> list[float]:
        """Seconds of products and of a sum of `size` bytes, alone and beside each other (see `overlap`)."""
        summed = torch.zeros(size // self.dtype.itemsize, device=self.device, dtype=self.dtype)
        x = torch.randn(64, 512, device=self.device, dtype=self.dtype)
        one = self.mean(lambda: F.linear(x, self.weight(512, 512)))
        alone = self.mean(lambda: self.comm.all_reduce(summed).wait(), True, OVERLAP_SECONDS)
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

            found += [self.mean(products, True, OVERLAP_SECONDS), alone, self.mean(both, True, OVERLAP_SECONDS)]
        return found
