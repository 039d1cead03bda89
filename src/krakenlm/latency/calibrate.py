"""A hardware description of this machine, written from what its ranks measured (krakenlm.latency.bench): by all of
them at once and, on CPUs, by one alone.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.inference.launch import run_ranks
from krakenlm.latency import hardware, kernels
from krakenlm.latency.bench import MESSAGES, TINY
from krakenlm.latency.hardware import BESIDE, TAKEN, Overlap, place_in_table, quantity, table_models
from krakenlm.latency.kernels import Table
from krakenlm.latency.links import LOOPBACK, LinkError, gbit, network, off_its_label
from krakenlm.latency.trace import trace
from krakenlm.machine import refuse_missing_ranks

QUIET = 0.2  # cores that other processes may keep busy; a shaped link itself takes some
COLLECTIVES = ("all_reduce", "all_gather", BESIDE, TAKEN)
AXES = {
    "product": ("m", "n", "k"),
    "attention_prefill": ("batch", "context", "heads", "head_size"),
    "attention_decode": ("batch", "context", "heads", "head_size"),
    **dict.fromkeys(("norm", "gelu", "pointwise", "copy"), ("bytes",)),
    **dict.fromkeys(COLLECTIVES, ("ranks", "bytes")),
}


def calibrate(out_yaml: str | Path, *, ranks: int, threads: int, link: str, dtype: str) -> None:
    """Measure this machine with `ranks` ranks of `threads` threads, and write its description.

    Args:
        link: between CPU ranks: loopback, or a rate such as 1gbit (krakenlm.latency.links).

    Raises:
        InputError: this machine has fewer cores or GPUs than the ranks need, or not the link.
    """
    gbit(link)  # one rank alone would not try it
    gpus = torch.cuda.device_count()
    refuse_missing_ranks("--ranks", ranks, threads, gpus)
    on_gpus = gpus >= ranks
    counts = [ranks] if on_gpus else sorted({1, ranks})
    measured = {}
    for count in counts:
        print(f"calibrate: measuring over {count} rank(s)", file=sys.stderr, flush=True)
        measured[count] = measure_over(link if count > 1 else LOOPBACK, count, threads, dtype)
    load = max(found["other_load"] for found in measured.values())
    if load > QUIET:
        print(
            f"calibrate: other processes kept {load:.2f} cores busy during a part of it, so these times are too long; "
            "measure once more while nothing else runs",
            file=sys.stderr,
        )
    refuse_no_collectives(measured)
    source = (
        f"measured on {time.strftime('%Y-%m-%d')} by krakenlm hardware calibrate, other processes on {load:.2f} cores"
    )
    about, tables = tables_of(measured, dtype, source)
    out_yaml = Path(out_yaml)
    file = Path("kernels") / f"{out_yaml.stem}.json"
    kernels.write_tables(out_yaml.parent / file, about, tables)
    joined = "NCCL" if on_gpus else f"gloo over {link}"
    title = f"{machine.device()}; {ranks} rank(s) of {threads} thread(s)" + (f", {joined}" if ranks > 1 else "")
    described = {"title": title, "engine": "torch" if on_gpus else "torch-cpu"}
    described |= description(measured, about, dtype, source)
    comment = f"Made by: krakenlm hardware calibrate --ranks {ranks} --threads {threads} --link {link} --dtype {dtype}"
    hardware.write(out_yaml, {**described, "kernels": str(file)}, comment)
    hardware.load(out_yaml)
    print(f"calibrate: wrote {out_yaml} and its tables, {out_yaml.parent / file}", file=sys.stderr)


def measure_over(link: str, ranks: int, threads: int, dtype: str) -> dict:
    """What the ranks measured, joined by `link`."""
    arguments = {"link": link, "dtype": dtype}
    try:
        with network(link, ranks) as joined:
            found = run_ranks("krakenlm.latency.bench:measure", arguments, ranks, threads, joined)
    except LinkError as error:
        raise InputError(f"link: expected one that can be had here, found {link} ({error}); use loopback") from None
    if off_its_label(link, found["link_gbit"]):
        raise InputError(f"link: expected {link}, found {found['link_gbit']:.2f} Gbit/s; try a quieter machine")
    return found


def refuse_no_collectives(measured: Mapping[int, Mapping]) -> None:
    """Say of which sizes noise has hidden a collective.

    Raises:
        InputError: of all of them.
    """
    for ranks, found in measured.items():
        for name in ("all_reduce", "all_gather") if ranks > 1 else ():
            hidden = sorted(set(MESSAGES) - {size for _, size, _ in found[name]})
            beside = [size for _, size, _ in found.get(BESIDE, []) if name == "all_reduce"]
            if len(hidden) == len(MESSAGES) or (beside and set(beside) <= set(hidden)):
                raise InputError(
                    f"calibrate: expected {name} to take time behind products, found none that is more than noise; "
                    "measure once more while nothing else runs"
                )
            if hidden:
                told = ", ".join(map(str, hidden))
                print(f"calibrate: {name} of {told} bytes took no more than noise; left out", file=sys.stderr)


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
        if name in COLLECTIVES or len(counts) == 1:
            points = {at[1:]: seconds for at, seconds in points.items()}
        else:
            axes = ("busy", *axes)
        if points:
            tables[name] = kernels.whole_table(points, axes, models_of[name])
    return about, tables


def description(measured: Mapping[int, Mapping], about: Mapping, dtype: str, source: str) -> dict:
    """The quantities of a hardware file."""
    reference, ranks = about["reference"], max(measured)
    memory = machine.memory_of_a_rank(ranks)
    described = {
        "devices": quantity(ranks, "devices", "ranks that were measured together"),
        "memory": quantity(memory / 1e9, "GB", "of the device, or the machine's over the ranks"),
        "reserved": quantity(0, "GB", "none beside the process itself"),
        "memory_bandwidth": quantity(reference["bytes"] / 1e9, "GB/s", f"{source}: the fastest copy"),
        "memory_bandwidth_reached": quantity(1, "share", "the bandwidth above was reached"),
        "peak": {dtype: quantity(reference["flops"] / 1e12, "TFLOP/s", f"{source}: the fastest product")},
        "launch": quantity(reference["launch"] * 1e6, "us", f"{source}: the quickest addition"),
        "dispatch": quantity(1e6 * dispatch(measured[ranks]["tiny"], measured[ranks]["bare"], dtype), "us", source),
        "overlap": {
            "compute": quantity(1, "times", "one rank has no communication"),
            "communication": quantity(1, "times", "one rank has no communication"),
        },
    }
    if ranks > 1:
        link, factors = reference["link"], factors_of(measured[ranks])
        described["inside"] = {
            "bandwidth": quantity(link["bandwidth"] / 1e9, "GB/s", f"{source}: the fastest AllReduce"),
            "latency": quantity(link["latency"] * 1e6, "us", f"{source}: the quickest AllReduce"),
        }
        described["overlap"] = {
            "compute": quantity(factors.compute, "times", source),
            "communication": quantity(factors.communication, "times", source),
        }
        if measured[ranks]["skew"]:
            described["skew"] = quantity(measured[ranks]["skew"], "share", source)
    return described


def dispatch(seconds: float, bare: Mapping[str, float], dtype: str) -> float:
    """Seconds that an operation takes beside its kernel, in the module and function calls around it: what a model of
    next to no arithmetic takes beyond its `bare` kernels, over their number.

    0 where the kernels alone took longer, as noise may have it on a GPU, which replays what was recorded; said on
    stderr.
    """
    traced = trace(models.config_from_dict(TINY), batch=1, new_tokens=TINY["block_size"], dtype=dtype)
    kernels_alone = sum(bare.get(each.name) or bare[place_in_table(each)[0]] for each in traced.operations)
    each = (seconds - kernels_alone) / len(traced.operations)
    if each < 0:
        print(
            f"calibrate: dispatch: {1e6 * each:.2f} us an operation were measured, and are taken as 0", file=sys.stderr
        )
    return max(0.0, each)


def factors_of(measured: Mapping) -> Overlap:
    """The factors of a machine, the medians of those of all sizes."""
    if "overlap" in measured:
        return overlap(measured["overlap"])
    alone = {size: seconds for _, size, seconds in measured["all_reduce"]}
    taken = {size: seconds for _, size, seconds in measured[TAKEN]}
    beside = [(size, seconds) for _, size, seconds in measured[BESIDE] if size in alone]
    return middle([Overlap.of(alone[size], seconds, taken[size]) for size, seconds in beside])


def middle(factors: Sequence[Overlap]) -> Overlap:
    return Overlap(median(each.compute for each in factors), median(each.communication for each in factors))


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
        factors.append(Overlap(x, x / (x - b)))
    return middle(factors)
