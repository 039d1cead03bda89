"""Time to first token, measured: prefill of a random prompt through random weights, every architecture in turn.

A run starts when every rank has left a barrier and ends when rank 0 has the first token on the host. Architectures take
turns run by run in rotating order, so what disturbs the machine disturbs all of them.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from krakenlm import machine, models
from krakenlm.files import write_table
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import random_rank
from krakenlm.latency import statistics
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.collectives import Collectives
from krakenlm.models.sizing import kv_bytes_per_token, parameter_count, sizes_of

COLUMNS = [
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs",
    "ttft_ms_median", "ttft_ms_mean", "ttft_ms_p95", "ttft_ms_std", "speedup_vs_standard", "source", "parameters",
    "layers_measured", "dtype", "kv_bytes_per_token", "ci_low", "ci_high", "link_gbit_measured", "interleave",
    "scale", "run", "speedup_ci_low", "speedup_ci_high", "width", "n_head", "threads", "seed", "drift", "drifted",
    "other_load", "clock_mhz", "throttled"
]  # fmt: skip
LINK_ROUNDS = 10
INTERLEAVE = "run by run, in rotating order"


def measure_ttft(
    *,
    size: str,
    tp: int,
    out_csv: str | Path,
    scale: str,
    run: str,
    architectures: list[str],
    vocab_size: int,
    contexts: list[int],
    batch: int,
    runs: int,
    most_runs: int,
    precision: float,
    warmup: int,
    dtype: str,
    threads: int,
    seed: int,
    n_layer: int,
    width: int,
    n_head: int,
) -> list[dict]:
    """Time every architecture of one shape on `tp` ranks at every context, and write the table.

    Each is run `runs` times, and further, up to `most_runs`, until every speed-up over the standard model is known to
    `precision`: half the width of its 95% interval, as a share of it.

    Raises:
        InputError: this machine has fewer cores or GPUs than the ranks need.
    """
    refuse_missing_ranks("tp", tp, threads, torch.cuda.device_count())
    shape = {"n_layer": n_layer, "vocab_size": vocab_size, "block_size": max(contexts)}
    sizes = [sizes_of(architecture, width, n_head, tp) | shape for architecture in architectures]
    counts = [parameter_count(each) for each in sizes]
    if max(counts) > 1.1 * min(counts):
        print(
            f"ttft: the models have {min(counts):,} to {max(counts):,} parameters, so speed-ups compare unequal sizes; "
            "larger widths come closer",
            file=sys.stderr,
        )
    times = run_ranks(
        "krakenlm.latency.ttft:time_on_rank",
        {
            "sizes": sizes,
            "contexts": contexts,
            "batch": batch,
            "runs": runs,
            "most_runs": most_runs,
            "precision": precision,
            "warmup": warmup,
            "dtype": dtype,
            "seed": seed,
        },
        world=tp,
        threads=threads,
    )
    given = {
        "size": size,
        "tp": tp,
        "batch": batch,
        "device": machine.device(),
        "engine": "torch",
        "link": times["link"],
        "source": "measured",
        "layers_measured": n_layer,
        "dtype": dtype,
        "interleave": INTERLEAVE,
        "scale": scale,
        "run": run,
        "threads": threads,
        "seed": seed,
    }
    rows = [
        given | row_of(sizes, times, index, context, dtype)
        for context in map(str, contexts)
        for index in range(len(sizes))
    ]
    return write_table(out_csv, rows, COLUMNS)


def row_of(sizes: list[dict], times: dict, index: int, context: str, dtype: str) -> dict:
    """What one architecture's runs at one context say."""
    own = times["milliseconds"][context][index]
    row = statistics.summarise(own)
    if (standard := index_of_standard(sizes)) is not None:
        ratio, low, high = statistics.speedup(times["milliseconds"][context][standard], own)
        row |= {"speedup_vs_standard": ratio, "speedup_ci_low": low, "speedup_ci_high": high}
    return row | {
        "architecture": sizes[index]["architecture"],
        "degree": sizes[index].get("degree", ""),
        "context": int(context),
        "runs": len(own),
        "parameters": parameter_count(sizes[index]),
        "kv_bytes_per_token": kv_bytes_per_token(sizes[index], getattr(torch, dtype).itemsize),
        "link_gbit_measured": times["link_gbit"][context],
        "width": sizes[index]["width"],
        "n_head": sizes[index]["n_head"],
        **times["machine"][context],
    }


def index_of_standard(sizes: list[dict]) -> int | None:
    """Where the model stands that the others are compared with."""
    return next((index for index, each in enumerate(sizes) if each["architecture"] == "standard"), None)


def time_on_rank(
    comm: Collectives,
    device: str,
    sizes: list[dict],
    contexts: list[int],
    batch: int,
    runs: int,
    most_runs: int,
    precision: float,
    warmup: int,
    dtype: str,
    seed: int,
) -> dict:
    """Body of one rank: {context: [[milliseconds of each run] of each architecture]} and what the link gave."""
    modules = [
        random_rank(models.config_from_dict(each), comm.rank, comm.world, seed, device, getattr(torch, dtype))
        for each in sizes
    ]
    milliseconds, link_gbit, machine_state = {}, {}, {}
    standard = index_of_standard(sizes)

    def enough(taken: list[list[float]]) -> bool:
        done = standard is None or statistics.precise(taken[standard], taken, precision)
        return len(taken[0]) >= most_runs or (len(taken[0]) >= runs and done)

    for context in contexts:
        generator = torch.Generator().manual_seed(seed)
        prompts_BT = torch.randint(sizes[0]["vocab_size"], (batch, context), generator=generator).to(device)
        caches = [Cache(module, batch, context) for module in modules]
        steps = [
            lambda module=module, cache=cache, prompts_BT=prompts_BT: next(
                generate(module, prompts_BT, 1, comm, cache)
            ).tolist()
            for module, cache in zip(modules, caches, strict=True)
        ]
        watch = statistics.Watch()
        milliseconds[str(context)] = interleave(steps, comm, device, warmup, enough)
        machine_state[str(context)] = watch.stop(comm, device)
        message = torch.zeros(batch, context, sizes[0]["width"], dtype=getattr(torch, dtype), device=device)
        link_gbit[str(context)] = measure_link(message, comm, device)
    link = "none" if comm.world == 1 else "NCCL" if device.startswith("cuda") else "gloo over loopback"
    return {"milliseconds": milliseconds, "link_gbit": link_gbit, "machine": machine_state, "link": link}


def interleave(
    steps: list[Callable[[], object]],
    comm: Collectives,
    device: str,
    warmup: int,
    enough: Callable[[list[list[float]]], bool],
) -> list[list[float]]:
    """Milliseconds of each step's runs, the steps in turns, every run from a barrier on, until rank 0 has `enough`.

    Each round starts one step further, so that no step always follows the same other.
    """
    milliseconds: list[list[float]] = [[] for _ in steps]
    run = 0
    while True:
        for turn in range(len(steps)):
            index = (run + turn) % len(steps)
            wait_for_ranks(comm, device)
            start = time.perf_counter()
            steps[index]()
            elapsed = time.perf_counter() - start
            if run >= warmup:
                milliseconds[index].append(1e3 * elapsed)
        run += 1
        # Ranks read different clocks: the first one decides for all.
        verdict = torch.tensor([float(run > warmup and comm.rank == 0 and enough(milliseconds))], device=device)
        if comm.all_reduce(verdict).wait().item():
            return milliseconds


def wait_for_ranks(comm: Collectives, device: str) -> None:
    """Return once every rank has come here."""
    comm.all_reduce(torch.zeros(1, device=device)).wait()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure_link(message: torch.Tensor, comm: Collectives, device: str) -> float | str:
    """Gbit/s that an AllReduce of `message` moves per rank and direction, 2 (n - 1) / n of its bytes; empty alone."""
    if comm.world == 1:
        return ""
    step = [lambda: wait_for_sum(message, comm, device)]
    times = interleave(step, comm, device, 2, lambda taken: len(taken[0]) >= LINK_ROUNDS)[0]
    moved = 2 * (comm.world - 1) / comm.world * message.numel() * message.itemsize
    return 8 * moved / (sorted(times)[len(times) // 2] * 1e-3) / 1e9


def wait_for_sum(message: torch.Tensor, comm: Collectives, device: str) -> None:
    comm.all_reduce(message).wait()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
