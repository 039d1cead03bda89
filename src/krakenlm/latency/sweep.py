"""Time to first token, simulated over a grid: hardware, shapes, ranks, contexts, batches, architectures, degrees."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.files import write_json, write_table
from krakenlm.latency import hardware as machines
from krakenlm.latency import ttft
from krakenlm.latency.hardware import Hardware
from krakenlm.latency.simulate import PARTS, Timeline, breakdown, chrome_trace, part_of, play
from krakenlm.latency.trace import Trace, trace
from krakenlm.models.sizing import kraken_width, kv_bytes_per_token, parameter_count
from krakenlm.values import Count, Counts, Dtype, HeadRule, Names

COLUMNS = [*ttft.COLUMNS, "hardware", "heads", *(f"{part}_ms" for part in PARTS), "fits"]
LAYER_COLUMNS = [
    "hardware", "size", "context", "batch", "tp", "architecture", "degree", "stream", "part", "name", "start_us",
    "end_us",
]  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A row's name, the sizes of its model (models.config_from_dict), and in how many chunks a prompt goes through."""

    architecture: str
    sizes: Mapping
    chunks: int = 1

    @property
    def degree(self) -> int | str:
        return self.sizes.get("degree", "")

    def trace(self, world: int, *, batch: int, new_tokens: int, cached: int, dtype: str, engine: str) -> Trace:
        """What a rank of `world` executes (krakenlm.latency.trace.trace)."""
        config = models.config_from_dict(self.sizes)
        prepare = (lambda module: setattr(module, "chunks", self.chunks)) if self.chunks > 1 else None
        lengths = {"batch": batch, "new_tokens": new_tokens, "cached": cached}
        return trace(config, world, **lengths, dtype=dtype, engine=engine, prepare=prepare)


def models_of(
    architectures: Sequence[str], shape: Mapping, tp: int, degrees: Sequence[int], heads: str, lengths: Mapping
) -> list[Model]:
    """The models of one size on `tp` ranks: a Kraken of each degree that divides over them, the larger of tp and 2
    always; of the others one each, where their heads do."""
    found = []
    for name in architectures:
        architecture, chunks = ttft.built_as(name), ttft.CHUNKS.get(name, 1)
        if chunks > 1 and tp == 1:
            continue  # they hide communication, and one rank has none
        if architecture != "kraken":
            sizes = {key: shape[key] for key in ("n_layer", "width", "n_head")}
            found.append(Model(name, {"architecture": architecture, **sizes, **lengths}, chunks))
            continue
        for degree in sorted({max(tp, 2), *degrees}):
            if heads == "head_count" and shape["n_head"] % degree:
                continue
            width, n_head = kraken_width(shape["width"], shape["n_head"], degree, rule=heads)
            sizes = {"degree": degree, "n_layer": shape["n_layer"], "width": width, "n_head": n_head}
            found.append(Model(name, {"architecture": architecture, **sizes, **lengths}))
    return [model for model in found if divides(model, tp)]


def divides(model: Model, tp: int) -> bool:
    """Whether a model can be divided over `tp` ranks."""
    try:
        with torch.device("meta"):
            models.build_rank(models.config_from_dict({**model.sizes, "n_layer": 1}), 0, tp)
    except InputError:
        return False
    return True


def simulate_grid(
    *,
    out_csv: str | Path,
    layers_csv: str | Path,
    scale: str,
    run: str,
    hardware: Names,
    architectures: Names,
    sizes: Mapping[str, Mapping[str, Count]],
    vocab_size: Count,
    tp: Counts,
    contexts: Counts,
    batches: Counts,
    degrees: Sequence[Count],
    heads: HeadRule,
    dtype: Dtype,
) -> list[dict]:
    """Simulate every cell of the grid, and write the table, and a table of what runs when in one layer of some.

    Args:
        layers_csv: of the first batch size on as many ranks as a machine has devices, if they are in the grid.
        hardware: names in config/hardware, or files.
        sizes: {name: n_layer, width, n_head} of the standard models.
        degrees: of Krakens, besides the larger of tp and 2.
        heads: rule of a Kraken's heads, head_size or head_count (krakenlm.models.sizing.kraken_width).

    Raises:
        InputError: a description of hardware is wrong.
    """
    found = [machines.load(each) for each in hardware]
    if not any(each.between or min(tp) <= each.devices for each in found):
        raise InputError(f"tp: expected one at least that {', '.join(hardware)} has devices for, found {tp}; lower one")
    lengths = {"vocab_size": vocab_size, "block_size": max(contexts)}
    common = {"scale": scale, "run": run, "heads": heads, "dtype": dtype, "source": "simulated"}
    rows, layers = [], []
    for (size, shape), ranks in itertools.product(sizes.items(), tp):
        places = [each for each in found if each.between is not None or ranks <= each.devices]
        candidates = models_of(architectures, shape, ranks, degrees, heads, lengths)
        for context, batch in itertools.product(contexts, batches):
            cell = {"size": size, "tp": ranks, "context": context, "batch": batch} | common
            for place, runs in runs_of(cell, places, candidates):
                rows += with_speedups([cell | row_of(each, place) for each in runs])
                if ranks == place.devices and batch == batches[0]:
                    layers += [cell | row for each in runs if each.is_usual for row in layer_rows(each, place)]
    write_table(layers_csv, layers, LAYER_COLUMNS)
    return write_table(out_csv, rows, COLUMNS)


@dataclass(frozen=True)
class Run:
    """A model's forward on a machine."""

    model: Model
    trace: Trace
    timeline: Timeline

    @property
    def is_usual(self) -> bool:
        """Whether a Kraken has a split per rank; the others always are."""
        return self.model.degree in ("", self.trace.world)


def runs_of(cell: Mapping, places: Sequence[Hardware], candidates: Sequence[Model]) -> Iterator[tuple]:
    """(machine, runs) of one size, number of ranks, context and batch: every model on every machine."""
    traces: dict[str, list[Trace]] = {}
    for place in places:
        if place.engine not in traces:
            lengths = {"batch": cell["batch"], "new_tokens": cell["context"], "cached": 0, "dtype": cell["dtype"]}
            traces[place.engine] = [model.trace(cell["tp"], engine=place.engine, **lengths) for model in candidates]
        yield (
            place,
            [
                Run(model, traced, timeline_of(traced, place))
                for model, traced in zip(candidates, traces[place.engine], strict=True)
            ],
        )


def with_speedups(rows: list[dict]) -> list[dict]:
    """Rows of one cell with each one's speed-up over standard, where that is among them."""
    standard = next((row["ttft_ms_median"] for row in rows if row["architecture"] == "standard"), None)
    if standard is None:
        return rows
    return [row | {"speedup_vs_standard": standard / row["ttft_ms_median"]} for row in rows]


def write_timeline(
    out_json: str | Path,
    *,
    hardware: str,
    architecture: str,
    shape: Mapping,
    tp: int,
    context: int,
    batch: int,
    decode: bool,
    vocab_size: int,
    degree: int | None,
    dtype: str,
) -> dict[str, float]:
    """Write the timeline of one cell for chrome://tracing or ui.perfetto.dev; milliseconds by what they go to.

    Args:
        shape: n_layer, width, n_head of the standard model.
        context: tokens of the prompt; with `decode`, those before the one new token.
        degree: of a Kraken; the larger of tp and 2 where none is given.

    Raises:
        InputError: the model cannot be divided over tp ranks, or the hardware has no place for them.
    """
    rows = (*models.ARCHITECTURES, *ttft.CHUNKS)
    if architecture not in rows:
        raise InputError(f"architecture: expected one of {', '.join(rows)}, found {architecture!r}; choose one")
    if degree is not None and architecture != "kraken":
        raise InputError(f"degree: expected none beside {architecture}, which has no splits, found {degree}; remove it")
    place = machines.load(hardware)
    place.check_ranks(tp)
    lengths = {"vocab_size": vocab_size, "block_size": context + 1}

    def over(ranks: int) -> list[Model]:
        wanted = max(ranks, 2) if degree is None else degree
        candidates = models_of([architecture], shape, ranks, [wanted], "head_size", lengths)
        return [model for model in candidates if model.degree in ("", wanted)]

    found = over(tp)
    if not found:
        heads = shape["n_head"] if degree is None else over(degree)[0].sizes["n_head"]
        most = place.devices if place.between is None else heads
        works = ", ".join(str(ranks) for ranks in range(1, most + 1) if over(ranks))
        of_hardware = f" on {place.name}" if place.between is None else ""
        raise InputError(
            f"tp: expected ranks that {architecture} can be divided over{of_hardware} ({works or 'none'}), "
            f"found {tp}; choose others"
        )
    new_tokens, cached = (1, context) if decode else (context, 0)
    traced = found[0].trace(tp, batch=batch, new_tokens=new_tokens, cached=cached, dtype=dtype, engine=place.engine)
    timeline = timeline_of(traced, place)
    title = f"{architecture} on {place.title}, simulated: rank 0 of {tp}, context {context}, batch {batch}"
    write_json(out_json, chrome_trace(timeline, title))
    return {"in all": 1e3 * timeline.seconds} | {part: 1e3 * each for part, each in breakdown(timeline).items()}


def timeline_of(traced: Trace, place: Hardware) -> Timeline:
    """How a trace runs on a machine."""
    return play(traced, lambda operation: place.seconds(operation, traced.world), place.overlap_of, place.skew)


def row_of(run: Run, place: Hardware) -> dict:
    """What one model's forward takes on one machine."""
    model, traced = run.model, run.trace
    memory = traced.weights + traced.kv_cache + traced.activations
    return {
        "architecture": model.architecture,
        "degree": model.degree,
        "engine": place.engine,
        "device": place.title,
        "hardware": place.name,
        "link": link_of(place, traced.world),
        "ttft_ms_median": 1e3 * run.timeline.seconds,
        "parameters": parameter_count(model.sizes),
        "kv_bytes_per_token": kv_bytes_per_token(model.sizes, traced.element_bytes),
        "width": model.sizes["width"],
        "n_head": model.sizes["n_head"],
        **{f"{part}_ms": 1e3 * seconds for part, seconds in breakdown(run.timeline).items()},
        "memory_gb": memory / 1e9,
        "fits": memory + place.reserved <= place.memory,
    }


def link_of(place: Hardware, world: int) -> str:
    """What joins the ranks, in words."""
    if world == 1:
        return "none"
    inside = f"{place.inside.bandwidth / 1e9:g} GB/s within a machine"
    return inside if world <= place.devices else f"{inside}, {place.between.bandwidth / 1e9:g} GB/s between machines"


def layer_rows(run: Run, place: Hardware) -> Iterator[dict]:
    """What runs when in about one layer from the middle of a model, from 0 on, in microseconds."""
    length = run.timeline.compute[-1].end / run.model.sizes["n_layer"]
    start = next(
        event.start
        for event in run.timeline.compute
        if event.start >= run.timeline.seconds / 2 and event.operation.kind == "norm"
    )
    for stream in ("compute", "communication"):
        for event in getattr(run.timeline, stream):
            begin, end = max(event.start - start, 0.0), min(event.end - start, length)
            if begin < end:
                yield {
                    "hardware": place.name,
                    "architecture": run.model.architecture,
                    "degree": run.model.degree,
                    "stream": stream,
                    "part": part_of(event.operation),
                    "name": event.operation.module or event.operation.name,
                    "start_us": round(1e6 * begin, 2),
                    "end_us": round(1e6 * end, 2),
                }
