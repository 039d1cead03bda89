"""Time to first token, measured: prefill of a random prompt through random weights, every architecture in turn.

A run starts when every rank has left a barrier, with the prompt on the host, and ends when the slowest rank has the
first token on the host. Architectures take turns run by run in rotating order, so what disturbs the machine disturbs
all of them.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.files import write_table
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import stream_ranks
from krakenlm.inference.shards import random_rank
from krakenlm.latency import statistics
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.links import LOOPBACK, TOLERANCE, LinkError, network, off_its_label
from krakenlm.latency.turns import INTERLEAVE, interleave
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.blocks import Config
from krakenlm.models.collectives import Collectives
from krakenlm.models.sizing import kv_bytes_per_token, parameter_count, sizes_of
from krakenlm.progress import Progress

COLUMNS = [
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs",
    "ttft_ms_median", "ttft_ms_mean", "ttft_ms_p95", "ttft_ms_std", "speedup_vs_standard", "source", "parameters",
    "layers_measured", "dtype", "kv_bytes_per_token", "ci_low", "ci_high", "link_gbit_measured", "interleave",
    "scale", "run", "speedup_ci_low", "speedup_ci_high", "width", "n_head", "threads", "seed", "drift", "drifted",
    "other_load", "clock_mhz", "throttled"
]  # fmt: skip
# Rows that are another way to run an architecture: the same weights, the prompt in so many chunks.
CHUNKS = {"standard-chunked": 2}


def measure_ttft(
    *,
    size: str,
    tp: int,
    out_csv: str | Path,
    scale: str,
    run: str,
    links: list[str],
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
    """Time every architecture of one shape on `tp` ranks at every context and over every link, and write the table.

    Each is run `runs` times, and further, up to `most_runs`, until every speed-up over the standard model is known to
    `precision`: half the width of its 95% interval, as a share of it. A link that this machine does not allow, or that
    does not give what its name says, has no rows; one line on stderr says why.

    Raises:
        InputError: this machine has fewer cores or GPUs than the ranks need, or no link has rows.
    """
    refuse_missing_ranks("tp", tp, threads, torch.cuda.device_count())
    shape = {"n_layer": n_layer, "vocab_size": vocab_size, "block_size": max(contexts)}
    # Chunks hide communication: one rank has none.
    names = [name for name in architectures if tp > 1 or name not in CHUNKS]
    models_timed = [
        {"name": name, "chunks": CHUNKS.get(name, 1), "sizes": sizes_of(built_as(name), width, n_head, tp) | shape}
        for name in names
    ]
    warn_of_unequal_sizes([parameter_count(each["sizes"]) for each in models_timed])
    settings = {
        "timed": models_timed,
        "contexts": contexts,
        "batch": batch,
        "runs": runs,
        "most_runs": most_runs,
        "precision": precision,
        "warmup": warmup,
        "dtype": dtype,
        "seed": seed,
    }
    given = {
        "size": size,
        "tp": tp,
        "batch": batch,
        "device": machine.device(),
        "engine": "torch",
        "source": "measured",
        "layers_measured": n_layer,
        "dtype": dtype,
        "interleave": INTERLEAVE,
        "scale": scale,
        "run": run,
        "threads": threads,
        "seed": seed,
    }
    rows = []
    for link in links if tp > 1 else [LOOPBACK]:
        times = time_over(link, settings, tp, threads)
        if times is not None:
            rows += [
                given | row_of(models_timed, times, index, context, dtype)
                for context in map(str, contexts)
                for index in range(len(models_timed))
            ]
    if not rows:
        raise InputError(f"links: expected one that can be had here, found {', '.join(links)}; add {LOOPBACK}")
    return write_table(out_csv, rows, COLUMNS)


def built_as(name: str) -> str:
    """The architecture behind a row's name."""
    return name.removesuffix("-chunked") if name in CHUNKS else name


def warn_of_unequal_sizes(counts: list[int]) -> None:
    if max(counts) > 1.1 * min(counts):
        print(
            f"ttft: the models have {min(counts):,} to {max(counts):,} parameters, so speed-ups compare unequal sizes; "
            "larger widths come closer",
            file=sys.stderr,
        )


def time_over(link: str, settings: dict, tp: int, threads: int) -> dict | None:
    """What the ranks measured over a link; None where it cannot be had, said on stderr."""
    try:
        with network(link, tp) as ranks_network:
            arguments = settings | {"link": link}
            progress = Progress(f"ttft over {link}", len(settings["contexts"]), "contexts")
            parts = stream_ranks("krakenlm.latency.ttft:time_on_rank", arguments, tp, threads, ranks_network)
            times = next(parts) | {"milliseconds": {}, "machine": {}}
            for part in parts:
                times["milliseconds"][str(part["context"])] = part["milliseconds"]
                times["machine"][str(part["context"])] = part["machine"]
                progress.add(1)
    except LinkError as error:
        print(f"ttft: no rows for link {link}: {error}", file=sys.stderr)
        return None
    if off_its_label(link, times["link_gbit"]):
        print(
            f"ttft: no rows for link {link}: it gave {times['link_gbit']:.2f} Gbit/s, more than {TOLERANCE:.0%} off; "
            "a quieter machine may give what it says",
            file=sys.stderr,
        )
        return None
    return times


def row_of(timed: list[dict], times: dict, index: int, context: str, dtype: str) -> dict:
    """What one model's runs at one context say."""
    own, sizes = times["milliseconds"][context][index], timed[index]["sizes"]
    row = statistics.summarise(own)
    if (standard := index_of_standard(timed)) is not None:
        ratio, low, high = statistics.speedup(times["milliseconds"][context][standard], own)
        row |= {"speedup_vs_standard": ratio, "speedup_ci_low": low, "speedup_ci_high": high}
    return row | {
        "architecture": timed[index]["name"],
        "degree": sizes.get("degree", ""),
        "context": int(context),
        "runs": len(own),
        "parameters": parameter_count(sizes),
        "kv_bytes_per_token": kv_bytes_per_token(sizes, getattr(torch, dtype).itemsize),
        "link": times["link"],
        "link_gbit_measured": times["link_gbit"],
        "width": sizes["width"],
        "n_head": sizes["n_head"],
        **times["machine"][context],
    }


def index_of_standard(timed: list[dict]) -> int | None:
    """Where the model stands that the others are compared with."""
    return next((index for index, each in enumerate(timed) if each["name"] == "standard"), None)


def time_on_rank(
    comm: Collectives,
    device: str,
    link: str,
    timed: list[dict],
    contexts: list[int],
    batch: int,
    runs: int,
    most_runs: int,
    precision: float,
    warmup: int,
    dtype: str,
    seed: int,
) -> Iterator[dict]:
    """Body of one rank: what the link gave, then for each context [[milliseconds of each run] of each model]."""
    name = "none" if comm.world == 1 else "NCCL" if device.startswith("cuda") else f"gloo over {link}"
    link_gbit = settle(link, comm, device)
    yield {"link": name, "link_gbit": link_gbit}
    if off_its_label(link, link_gbit):
        return
    modules = random_modules(timed, comm, device, getattr(torch, dtype), seed)
    standard = index_of_standard(timed)

    def enough(taken: list[list[float]]) -> bool:
        done = standard is None or statistics.precise(taken[standard], taken, precision)
        return len(taken[0]) >= most_runs or (len(taken[0]) >= runs and done)

    for context in contexts:
        generator = torch.Generator().manual_seed(seed)
        prompts_BT = torch.randint(timed[0]["sizes"]["vocab_size"], (batch, context), generator=generator)
        steps = [first_token(module, prompts_BT, comm, device) for module in modules]
        watch = statistics.Watch()
        milliseconds = interleave(steps, comm, device, warmup, enough)
        yield {"context": context, "milliseconds": milliseconds, "machine": watch.stop(comm, device)}


def random_modules(
    timed: list[dict], comm: Collectives, device: str, dtype: torch.dtype, seed: int
) -> list[torch.nn.Module]:
    """Every model's rank with random weights; rows of the same architecture and sizes share theirs."""
    drawn: dict[Config, torch.nn.Module] = {}
    modules = []
    for each in timed:
        config = models.config_from_dict(each["sizes"])
        if config not in drawn:
            drawn[config] = random_rank(config, comm.rank, comm.world, seed, device, dtype)
        module = copy.copy(drawn[config])
        if each["chunks"] > 1:
            module.chunks = each["chunks"]
        modules.append(module)
    return modules


def first_token(
    module: torch.nn.Module, prompts_BT: torch.Tensor, comm: Collectives, device: str
) -> Callable[[], list[int]]:
    """What is timed: prompts on the host to the first token of each on the host."""
    cache = Cache(module, *prompts_BT.shape)
    return lambda: next(generate(module, prompts_BT.to(device), 1, comm, cache)).tolist()
