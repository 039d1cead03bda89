"""Advice: the architecture, degree and number of ranks that are predicted to answer soonest at equal parameters."""

import csv
import functools
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from krakenlm.errors import InputError
from krakenlm.files import write_table
from krakenlm.latency import hardware as machines
from krakenlm.latency import ttft
from krakenlm.latency.hardware import Hardware, place_in_table
from krakenlm.latency.kernels import INTERVAL, HeldOut
from krakenlm.latency.simulate import play
from krakenlm.latency.sweep import Model, divides, models_of, timeline_of
from krakenlm.latency.trace import Operation, Trace
from krakenlm.models import ARCHITECTURES
from krakenlm.models.sizing import kraken_width_for_total, parameter_count, standard_shape

# The chunked form of standard needs a prompt: token by token it is standard.
ROWS = ("standard", "standard-chunked", *(name for name in ARCHITECTURES if name != "standard"))
MEMORY_TOKENS = (2048, 8192, 32768)  # in each row's cache, for the columns of memory
COLUMNS = [
    "hardware", "architecture", "degree", "tp", "parameters", "width", "n_head", "n_layer", "context", "batch",
    "ttft_ms", "ttft_ms_low", "ttft_ms_high", "token_ms", "token_ms_low", "token_ms_high", "token_rank",
    "ttft_speedup_vs_standard", *(f"memory_gb_{tokens}" for tokens in MEMORY_TOKENS), "device_memory_gb", "fits",
    "perplexity_vs_standard", "perplexity_from",
]  # fmt: skip
DRAWS = 101  # of the tables' errors, for the interval of a prediction
QUANTILE_95 = 1.645  # standard deviations from the mean to the normal distribution's 95% quantile
# So much of the parameters that were asked for may a model that is ranked have more or fewer.
TOLERANCE = 0.05
# Trained models are of the same size where their parameters differ by no more.
SAME_SIZE = 0.1


def advise(
    *,
    hardware: str,
    parameters: float,
    context: int,
    batch: int,
    tp: Sequence[int],
    vocab_size: int,
    heads: str,
    dtype: str,
    perplexity_csv: str | Path | None,
    out_csv: str | Path | None,
) -> list[dict]:
    """Every architecture, degree and number of ranks on one machine, soonest first; what has no room comes last.

    A model whose heads and layers come no nearer than TOLERANCE to the parameters is left out, said on stderr.

    Args:
        hardware: a name in config/hardware, or a file.
        parameters: of every model, within TOLERANCE.
        context: tokens of the prompt; the time of a token is that of the one after it.
        tp: numbers of ranks; those that are powers of two, up to a machine's devices, if empty.
        heads: rule of a Kraken's heads (krakenlm.models.sizing.kraken_width).
        perplexity_csv: what this pipeline has trained, if it has.
        out_csv: also written there, unless None.

    Raises:
        InputError: a description or a table is wrong, the machine has no place for the ranks, or the parameters are too
            few for a model.
    """
    place = machines.load(hardware)
    ranks = list(tp) or [1 << power for power in range(place.devices.bit_length())]
    for each in ranks:
        place.check_ranks(each)
    lengths = {"vocab_size": vocab_size, "block_size": max(context + 1, *MEMORY_TOKENS)}
    shape = standard_shape(parameters, **lengths, ranks=ranks)
    trained = read_perplexities(perplexity_csv)
    rows, others = [], []
    for world in ranks:
        candidates = equal_models(shape, world, [each for each in ranks if each > 1], heads, lengths)
        near = [model for model in candidates if off(model, parameters) <= TOLERANCE]
        others += [model for model in candidates if model not in near]
        rows += with_speedups([row_of(model, world, place, context, batch, dtype) for model in near])
    explain_left_out(others, parameters, all_are=not rows)
    rows = [row | perplexity_cost(row["architecture"], row["degree"], trained) for row in ranked(rows)]
    return write_table(out_csv, rows, COLUMNS) if out_csv else rows


def off(model: Model, parameters: float) -> float:
    """By what share of them a model has more or fewer than so many parameters."""
    return abs(parameter_count(model.sizes) / parameters - 1)


def explain_left_out(others: Sequence[Model], parameters: float, all_are: bool) -> None:
    """Say which models are left out for their size.

    Raises:
        InputError: all are.
    """
    names = {
        f"{model.architecture}{f' {model.degree}-way' if model.degree else ''}": parameter_count(model.sizes)
        for model in others
    }
    sizes = ", ".join(f"{name} ({count / 1e9:.3g}B)" for name, count in names.items())
    if all_are:
        raise InputError(
            f"parameters: expected a number that whole layers and heads come within {TOLERANCE:.0%} of, found "
            f"{parameters:g}, for which there are {sizes}; choose others"
        )
    if names:
        unmeasured = "; without standard there is no column x standard" if "standard" in names else ""
        print(
            f"advise: left out, more than {TOLERANCE:.0%} off --params {parameters:g}: {sizes}{unmeasured}; a "
            "Kraken of another --params or by the other --heads may come nearer",
            file=sys.stderr,
        )


def with_speedups(rows: list[dict]) -> list[dict]:
    """Rows of one number of ranks with each one's speed-up over standard; empty where standard does not divide."""
    standard = next((row["ttft_ms"] for row in rows if row["architecture"] == "standard"), None)
    return [row | {"ttft_speedup_vs_standard": standard / row["ttft_ms"] if standard else ""} for row in rows]


def ranked(rows: Sequence[dict]) -> list[dict]:
    """The rows by time to first token, those that fit before the others, each with its place by time per token."""
    by_token = sorted(rows, key=lambda row: (not row["fits"], row["token_ms"]))
    places = {id(row): place for place, row in enumerate(by_token, start=1)}
    ordered = sorted(rows, key=lambda row: (not row["fits"], row["ttft_ms"]))
    return [row | {"token_rank": places[id(row)]} for row in ordered]


def equal_models(shape: Mapping, tp: int, degrees: Sequence[int], heads: str, lengths: Mapping) -> list[Model]:
    """The models of one size on `tp` ranks, a Kraken of each degree as near to the standard model's parameters in all
    as its heads allow."""
    standard = {"architecture": "standard", **shape, **lengths}
    others = [name for name in ROWS if name != "kraken"]
    found = models_of(others, shape, tp, [], heads, lengths)
    for degree in sorted({max(tp, 2), *degrees}):
        if heads == "head_count" and shape["n_head"] % degree:
            continue
        width, n_head = kraken_width_for_total(standard, degree, heads)
        sizes = standard | {"architecture": "kraken", "degree": degree, "width": width, "n_head": n_head}
        kraken = Model("kraken", sizes)
        if divides(kraken, tp):
            found.append(kraken)
    return found


def row_of(model: Model, world: int, place: Hardware, context: int, batch: int, dtype: str) -> dict:
    """What one model is predicted to take on one machine."""

    @functools.cache
    def traced(new_tokens: int, cached: int) -> Trace:
        return model.trace(world, batch=batch, new_tokens=new_tokens, cached=cached, dtype=dtype, engine=place.engine)

    row = {
        "hardware": place.name,
        "architecture": model.architecture,
        "degree": model.degree,
        "tp": world,
        "parameters": parameter_count(model.sizes),
        **{key: model.sizes[key] for key in ("width", "n_head", "n_layer")},
        "context": context,
        "batch": batch,
        "device_memory_gb": (place.memory - place.reserved) / 1e9,
    }
    for name, trace in (("ttft", traced(context, 0)), ("token", traced(1, context))):
        low, high = interval(trace, place)
        row[f"{name}_ms"] = 1e3 * timeline_of(trace, place).seconds
        row[f"{name}_ms_low"], row[f"{name}_ms_high"] = 1e3 * low, 1e3 * high
    for tokens in MEMORY_TOKENS:
        row[f"memory_gb_{tokens}"] = memory(traced(tokens, 0)) / 1e9
    row["fits"] = memory(traced(context, 0)) + place.reserved <= place.memory
    return row


def memory(traced: Trace) -> float:
    """Bytes of one device: weights, the cache of every token, the most that results take."""
    return traced.weights + traced.kv_cache + traced.activations


def interval(traced: Trace, place: Hardware) -> tuple[float, float]:
    """Seconds between which 90% of predictions lie if tables err as they did at points held out.

    All shapes of a kernel are taken to be off by the same factor, and each kernel by one of its own: were every shape
    off by its own, the errors would cancel and the interval be narrower. What has no table is taken as it is, and so
    are the assumptions of the description.
    """
    alone = {}
    for operation in traced.operations:
        if id(operation) not in alone:
            alone[id(operation)] = place.seconds(operation, traced.world), table_of(operation, place)
    generator = random.Random(0)
    seconds = []
    for _ in range(DRAWS):
        factors = {name: factor(table.held_out, generator) for name, table in place.tables.items()} | {None: 1.0}

        def drawn(operation: Operation, factors: Mapping = factors) -> float:
            time, table = alone[id(operation)]
            return time * factors[table]

        overlap = functools.partial(place.overlap_of, off=factors)
        seconds.append(play(traced, drawn, overlap, place.skew).seconds)
    seconds.sort()
    low, high = INTERVAL
    return seconds[round(low * (DRAWS - 1))], seconds[round(high * (DRAWS - 1))]


def table_of(operation: Operation, place: Hardware) -> str | None:
    """Name of the table that an operation's time comes from; None where it comes from none."""
    if operation.ranks is not None:
        return operation.kind if operation.kind in place.tables else None
    name = operation.name if operation.name in place.tables else place_in_table(operation)[0]
    covered = not operation.flops or operation.dtype in place.table_dtypes
    return name if covered and name in place.tables else None


def factor(held_out: HeldOut | None, generator: random.Random) -> float:
    """A draw of measured over predicted time: normal in its logarithm, below and above the prediction each as wide as
    the quantiles of the held-out errors say; 1 where they are not known."""
    deviation = generator.gauss(0.0, 1.0)
    if held_out is None:
        return 1.0
    # A prediction that was too long (high) means a time below it.
    end = held_out.high if deviation < 0 else held_out.low
    return math.exp(deviation * abs(math.log1p(end)) / QUANTILE_95)


PERPLEXITY_COLUMNS = ("model", "architecture", "degree", "parameters", "data", "protocol", "loss", "seed")


def read_perplexities(path: str | Path | None) -> list[dict]:
    """Rows of a perplexity.csv; none without one.

    Raises:
        InputError: it is missing or lacks a column.
    """
    if path is None:
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            missing = [column for column in PERPLEXITY_COLUMNS if row.get(column) is None]
            if missing:
                raise InputError(f"{path}: expected a column {missing[0]}, found none; run the perplexity stage again")
            row["parameters"], row["loss"] = float(row["parameters"] or "nan"), float(row["loss"])
    except FileNotFoundError:
        raise InputError(f"perplexity_csv: expected a table, found no file {path}; train models first") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected numbers, found a damaged file ({error}); make it again") from None
    return rows


def perplexity_cost(architecture: str, degree: object, trained: Sequence[Mapping]) -> dict:
    """Perplexity over standard's among the largest trained models of one size that have both; empty where none have.

    Models are compared on the same data by the same protocol; losses are means over seeds.
    """
    name = ttft.built_as(architecture)
    own = [row for row in trained if (row["architecture"], str(row["degree"])) == (name, str(degree))]
    for row in sorted(own, key=lambda row: row["parameters"], reverse=True):
        alike = same_size_as(row)
        standard = [each for each in trained if each["architecture"] == "standard" and alike(each)]
        same = [each for each in own if alike(each)]
        if standard:
            ratio = math.exp(fmean(each["loss"] for each in same) - fmean(each["loss"] for each in standard))
            seeds = len({each["seed"] for each in same})
            told = f"{row['model']}, {row['parameters'] / 1e6:.3g}M parameters, {row['data']}, {seeds} seed(s)"
            return {"perplexity_vs_standard": ratio, "perplexity_from": told}
    return {"perplexity_vs_standard": "", "perplexity_from": ""}


def same_size_as(row: Mapping) -> Callable[[Mapping], bool]:
    """Whether another row is of a model of the same size, scored on the same data by the same protocol."""

    def alike(other: Mapping) -> bool:
        nearly = abs(other["parameters"] / row["parameters"] - 1) <= SAME_SIZE
        return nearly and all(other[key] == row[key] for key in ("data", "protocol"))

    return alike


def lines(rows: Sequence[Mapping]) -> list[str]:
    """The rows as a table of text."""
    titles = ["architecture", "tp", "parameters", "TTFT, ms (90%)", "x standard", "token, ms (90%)", "by token"]
    titles += [f"GB at {tokens // 1024}k" for tokens in MEMORY_TOKENS] + ["perplexity"]
    table = [titles]
    for row in rows:
        name = row["architecture"] + (f" {row['degree']}-way" if row["degree"] else "")
        speedup, cost = row["ttft_speedup_vs_standard"], row["perplexity_vs_standard"]
        table.append(
            [
                name,
                str(row["tp"]),
                f"{row['parameters'] / 1e9:.3g}B",
                spread(row, "ttft"),
                f"{speedup:.2f}" if speedup else "",
                spread(row, "token"),
                str(row["token_rank"]),
                *(memory_text(row, tokens) for tokens in MEMORY_TOKENS),
                f"x {cost:.3f}" if cost != "" else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    measured = dict.fromkeys(row["perplexity_from"] for row in rows if row["perplexity_from"])
    return text + [f"perplexity over standard's: {each}" for each in measured]


def spread(row: Mapping, name: str) -> str:
    return f"{row[f'{name}_ms']:.4g} ({row[f'{name}_ms_low']:.3g} to {row[f'{name}_ms_high']:.3g})"


def memory_text(row: Mapping, tokens: int) -> str:
    """Gigabytes of a device; marked where it has not as many."""
    needed = row[f"memory_gb_{tokens}"]
    return f"{needed:.1f}" + ("" if needed <= row["device_memory_gb"] else " (too much)")
