"""Time to first token, measured: prefill of a random prompt through random weights, every architecture in turn.

A run starts when every rank has left a barrier, with the prompt on the host, and ends when the slowest rank has the
first token on the host. Architectures take turns run by run in rotating order, so what disturbs the machine disturbs
all of them. The time per output token is that of a step from one token to the next behind the prompt's others. Where
the models of a cell do not fit a rank's memory together, fewer layers of each are timed (krakenlm.latency.depth).
"""

import copy
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.files import write_table
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate, likeliest
from krakenlm.inference.launch import stream_ranks
from krakenlm.inference.recorded import RecordedPrefill
from krakenlm.inference.shards import as_engine, random_rank
from krakenlm.latency import depth, statistics
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.breakdown import WHOLE, deepened, profiled, start_profiler
from krakenlm.latency.links import LOOPBACK, TOLERANCE, LinkError, network, off_its_label
from krakenlm.latency.memory import USABLE, memory_of
from krakenlm.latency.simulate import PARTS
from krakenlm.latency.turns import INTERLEAVE, interleave
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.blocks import LAST, Config
from krakenlm.models.collectives import Collectives
from krakenlm.models.sizing import kv_bytes_per_token, parameter_count, rank_parameter_count, sizes_of
from krakenlm.progress import Progress
from krakenlm.values import Count, Counts, Dtype, Names, Natural, Share

COLUMNS = [
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs",
    "ttft_ms_median", "ttft_ms_mean", "ttft_ms_p95", "ttft_ms_std", "speedup_vs_standard", "source", "parameters",
    "layers_measured", "dtype", "kv_bytes_per_token", "ci_low", "ci_high", "link_gbit_measured", "interleave",
    "scale", "run", "speedup_ci_low", "speedup_ci_high", "width", "n_head", "threads", "seed", "drift", "drifted",
    "other_load", "clock_mhz", "throttled", "tpot_ms_median", "tpot_ms_std", "memory_gb", "longest_context",
    "cuda_graph",
]  # fmt: skip
BREAKDOWN_COLUMNS = [
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs", "prefill_ms",
    *(f"{part}_ms" for part in PARTS), "source", "layers_measured", "dtype", "threads", "seed", "scale", "run",
]  # fmt: skip
# What ranks measure at each context.
OF_CONTEXT = ("milliseconds", "per_token", "machine", "parts")
# Rows that are another way to run an architecture: the same weights, the prompt in so many chunks.
CHUNKS = {"standard-chunked": 2}


def measure_ttft(
    *,
    size: str,
    tp: int,
    out_csv: str | Path,
    breakdown_csv: str | Path,
    scale: str,
    run: str,
    links: Names,
    architectures: Names,
    vocab_size: Count,
    contexts: Counts,
    batch: Count,
    runs: Count,
    most_runs: Count,
    precision: Share,
    warmup: Natural,
    profiled_runs: Count,
    dtype: Dtype,
    threads: Count,
    seed: int,
    n_layer: Count,
    width: Count,
    n_head: Count,
) -> list[dict]:
    """Time every architecture of one shape on `tp` ranks at every context and over every link, and write the tables.

    Each is run `runs` times, and further, up to `most_runs`, until every speed-up over the standard model is known to
    `precision`: half the width of its 95% interval, as a share of it. A link that this machine does not allow, or that
    does not give what its name says, has no rows; one line on stderr says why.

    Args:
        breakdown_csv: where the time goes, from `profiled_runs` runs of their own for each row.

    Raises:
        InputError: this machine has fewer cores or GPUs than the ranks need, or too little memory for a few layers, or
            no link has rows, or `most_runs` are fewer than `runs`.
    """
    if most_runs < runs:
        raise InputError(f"settings: most_runs: expected at least runs ({runs}), found {most_runs}; raise it")
    refuse_missing_ranks("tp", tp, threads, torch.cuda.device_count())
    shape = {"n_layer": n_layer, "vocab_size": vocab_size, "block_size": max(contexts)}
    # Chunks hide communication: one rank has none.
    names = [name for name in architectures if tp > 1 or name not in CHUNKS]
    models_timed = [
        {"name": name, "chunks": CHUNKS.get(name, 1), "sizes": sizes_of(built_as(name), width, n_head, tp) | shape}
        for name in names
    ]
    warn_of_unequal_sizes([parameter_count(each["sizes"]) for each in models_timed])
    available = machine.memory_of_a_rank(tp)
    engine = "torch" if torch.cuda.device_count() >= tp else "torch-cpu"
    layers = layers_timed(models_timed, tp, batch, max(contexts), dtype, engine, USABLE * available)
    settings = {
        "timed": models_timed,
        "layers": layers,
        "contexts": contexts,
        "batch": batch,
        "runs": runs,
        "most_runs": most_runs,
        "precision": precision,
        "warmup": warmup,
        "profiled_runs": profiled_runs,
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
        "layers_measured": layers,
        "dtype": dtype,
        "interleave": INTERLEAVE,
        "scale": scale,
        "run": run,
        "threads": threads,
        "seed": seed,
    }
    memory = [
        memory_of(each["sizes"], each["chunks"], tp, batch=batch, context=max(contexts), dtype=dtype, engine=engine)
        for each in models_timed
    ]
    rows, parts = [], []
    for link in links if tp > 1 else [LOOPBACK]:
        times = time_over(link, settings, tp, threads)
        if times is None:
            continue
        for context, index in itertools.product(map(str, contexts), range(len(models_timed))):
            row = given | row_of(models_timed, times, index, context, dtype)
            row["memory_gb"] = memory[index].at(int(context)) / 1e9
            row["longest_context"] = memory[index].longest_context(USABLE * available)
            rows.append(row)
            parts.append(row | breakdown_of(times["parts"][context][index]) | {"runs": profiled_runs})
    if not rows:
        raise InputError(f"links: expected one that can be had here, found {', '.join(links)}; add {LOOPBACK}")
    write_table(breakdown_csv, parts, BREAKDOWN_COLUMNS)
    return write_table(out_csv, rows, COLUMNS)


def layers_timed(
    timed: list[dict], tp: int, batch: int, context: int, dtype: str, engine: str, available: float
) -> int:
    """How many layers of every model are timed, so that all of them fit a rank's `available` bytes together.

    Raises:
        InputError: too few do.
    """
    n_layer = timed[0]["sizes"]["n_layer"]

    def beside_weights(layers: int) -> float:
        """Cache and results of every model: a recorded prefill keeps its own."""
        found = 0.0
        for each in timed:
            sizes = each["sizes"] | {"n_layer": layers}
            memory = memory_of(sizes, each["chunks"], tp, batch=batch, context=context, dtype=dtype, engine=engine)
            found += memory.at(context) - weights(sizes)
        return found

    def weights(sizes: dict) -> int:
        return getattr(torch, dtype).itemsize * rank_parameter_count(sizes, tp)

    def needed(layers: int) -> float:
        drawn = {str(each["sizes"]): each["sizes"] | {"n_layer": layers} for each in timed}
        shallow = beside_weights(depth.SHALLOW) if layers < n_layer else 0.0
        return sum(map(weights, drawn.values())) + beside_weights(layers) + shallow

    layers = depth.layers_that_fit(n_layer, needed, available)
    if layers < n_layer:
        print(
            f"ttft: {layers} of {n_layer} layers of every architecture fit {available / 1e9:.3g} GB a rank; the time "
            "of the others is what a layer takes, and the rows say so",
            file=sys.stderr,
        )
    return layers


def breakdown_of(parts: dict[str, float]) -> dict[str, float]:
    """Columns of the breakdown, in milliseconds."""
    return {"prefill_ms": parts[WHOLE], **{f"{part}_ms": parts[part] for part in PARTS}}


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
            times = next(parts) | {key: {} for key in OF_CONTEXT}
            for part in parts:
                context = str(part.pop("context"))
                for key, found in part.items():
                    times[key][context] = found
                progress.add(int("milliseconds" in part))
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
    row = statistics.summarise(own) | statistics.per_token(times["per_token"][context][index])
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
    layers: int,
    contexts: list[int],
    batch: int,
    runs: int,
    most_runs: int,
    precision: float,
    warmup: int,
    profiled_runs: int,
    dtype: str,
    seed: int,
) -> Iterator[dict]:
    """Body of one rank: what the link gave; for each context, by model, milliseconds of each run's first token and of
    one more token; then for each context the parts of the profiled runs.
    """
    name = "none" if comm.world == 1 else "NCCL" if device.startswith("cuda") else f"gloo over {link}"
    link_gbit = settle(link, comm, device)
    yield {"link": name, "link_gbit": link_gbit}
    if off_its_label(link, link_gbit):
        return
    n_layer, standard = timed[0]["sizes"]["n_layer"], index_of_standard(timed)
    modules = random_modules(timed, layers, comm, device, getattr(torch, dtype), seed)
    if layers < n_layer:
        modules += [depth.shallow(module) for module in modules]

    def whole(taken: list[list[float]]) -> list[list[float]]:
        """The runs of every model with all of its layers."""
        if layers == n_layer:
            return taken
        pairs = zip(taken[: len(timed)], taken[len(timed) :], strict=True)
        return [depth.deepened(deep, few, layers, n_layer) for deep, few in pairs]

    def enough(taken: list[list[float]]) -> bool:
        full = whole(taken)
        done = standard is None or statistics.precise(full[standard], full, precision)
        return len(taken[0]) >= most_runs or (len(taken[0]) >= runs and done)

    def requests(context: int, recorded: bool) -> list[Request]:
        generator = torch.Generator().manual_seed(seed)
        prompts_BT = torch.randint(timed[0]["sizes"]["vocab_size"], (batch, context), generator=generator)
        return [Request(module, prompts_BT, comm, device, recorded) for module in modules]

    # Caches and graphs of one context at a time: that is what `layers_timed` counts.
    for context in contexts:
        asked = requests(context, recorded=device.startswith("cuda"))
        watch = statistics.Watch()
        firsts = interleave([each.first_token for each in asked], comm, device, warmup, enough)
        state = watch.stop(comm, device) | {"cuda_graph": device.startswith("cuda")}
        ready, steps = [each.step_back for each in asked], [each.next_token for each in asked]
        seconds = interleave(steps, comm, device, warmup, lambda taken: len(taken[0]) >= runs, ready)
        yield {"context": context, "milliseconds": whole(firsts), "per_token": whole(seconds), "machine": state}
        del asked, ready, steps
    # Only now, so that nothing is timed in a process that has profiled.
    start_profiler(device)
    for context in contexts:
        found = [each.parts(profiled_runs) for each in requests(context, recorded=False)]
        if layers < n_layer:
            halves = zip(found[: len(timed)], found[len(timed) :], strict=True)
            found = [deepened(deep, few, layers, n_layer) for deep, few in halves]
        yield {"context": context, "parts": found}


def random_modules(
    timed: list[dict], layers: int, comm: Collectives, device: str, dtype: torch.dtype, seed: int
) -> list[torch.nn.Module]:
    """Every model's rank of so many layers, weights random; rows of the same architecture and sizes share theirs."""
    drawn: dict[Config, torch.nn.Module] = {}
    modules = []
    for each in timed:
        config = models.config_from_dict(each["sizes"] | {"n_layer": layers})
        if config not in drawn:
            drawn[config] = as_engine(random_rank(config, comm.rank, comm.world, seed, device, dtype))
        module = copy.copy(drawn[config])
        if each["chunks"] > 1:
            module.chunks = each["chunks"]
        modules.append(module)
    return modules


class Request:
    """Prompts of one length for one model: what is timed, and what is profiled.

    Args:
        recorded: capture the prefill as a CUDA graph, which `first_token` then replays.
    """

    def __init__(
        self, module: torch.nn.Module, prompts_BT: torch.Tensor, comm: Collectives, device: str, recorded: bool
    ) -> None:
        self.module, self.prompts_BT, self.comm, self.device = module, prompts_BT, comm, device
        self.cache = Cache(module, *prompts_BT.shape)
        self.last_B1 = prompts_BT[:, -1:].to(device)
        self.recorded = RecordedPrefill(module, *prompts_BT.shape, comm, self.cache) if recorded else None

    def first_token(self) -> list[int]:
        """Prompts on the host to the first token of each on the host."""
        if self.recorded is not None:
            return self.recorded(self.prompts_BT).tolist()
        return self.prefill(self.comm)

    def prefill(self, comm: Collectives) -> list[int]:
        """The same, operation by operation."""
        return next(generate(self.module, self.prompts_BT.to(self.device), 1, comm, self.cache)).tolist()

    def parts(self, runs: int) -> dict[str, float]:
        """Milliseconds of a prefill by what they go to, mean of so many profiled runs."""
        if self.device.startswith("cuda"):  # the first of single operations loads kernels
            self.prefill(self.comm)
        return profiled(self.prefill, self.module, self.comm, self.device, runs)

    def step_back(self) -> None:
        """Forget the last token of each prompt."""
        batch, context = self.prompts_BT.shape
        self.cache.set_lengths([context - 1] * batch)

    def next_token(self) -> list[int]:
        """One token of each prompt, behind all of its others, to the next one on the host."""
        return likeliest(self.module(self.last_B1, self.comm, self.cache, at=LAST)[:, -1]).tolist()
