"""The page's section on time to first token."""

from collections.abc import Sequence
from functools import partial

from krakenlm.report import comparisons
from krakenlm.report.elements import Cell, Column, Figure, Group, Sample, Section, Table, table, verbatim
from krakenlm.report.figures import Palette, bars_by_context, dots_by_context, lines_by_bandwidth
from krakenlm.report.numbers import Row, count, digits, distinct, geometric_mean, number, plural, sentence, span, times

# Cores that others may keep busy before the page warns: a quiet machine shows 0.1 or 0.2 for its own housekeeping.
DISTURBING_LOAD = 0.5

NEEDED = (
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs", "ttft_ms_median",
    "ttft_ms_std", "speedup_vs_standard", "source", "parameters", "kv_bytes_per_token", "ci_low", "ci_high",
)  # fmt: skip
# What makes two rows comparable, besides the architecture and the context.
CELL = ("size", "tp", "batch", "engine", "device", "link", "source", "dtype")
SETTING = ("source", "engine", "device", "link", "dtype")
# Kraken's mean over standard in the paper's abstract, and where it was measured.
PAPER_SPEEDUP = "1.356"
PAPER_WHERE = "8 A100 40 GB, NVSwitch, TensorRT-LLM; 35.6% in the mean (arXiv 2408.07802)"


def section(rows: Sequence[Row], palette: Palette) -> Section:
    """Time to first token by context, and the speed-up over standard."""
    if not rows:
        return Section("ttft", "Time to first token", ["No time to first token was measured in this run."])
    return Section(
        "ttft",
        "Time to first token",
        [headline(rows), spread(rows)],
        summary=summary(rows),
        groups=[group(part, palette, speedup_limits(rows)) for part in split(rows, CELL)]
        + [by_link(part, palette, speedup_limits(rows)) for part in over_several_links(rows)],
        tables=[every_cell(rows)],
        details=[verbatim("ttft-verbatim", "ttft.csv as it is", rows)],
    )


def split(rows: Sequence[Row], columns: Sequence[str]) -> list[list[Row]]:
    """The rows in groups of equal values in `columns`, in the order of the table."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(column, "") for column in columns), []).append(row)
    return list(groups.values())


def shared(rows: Sequence[Row]) -> list[Row]:
    """Rows with a speed-up at two ranks or more: what one rank does says nothing about communication."""
    return [
        row
        for row in rows
        if (number(row["tp"]) or 0) > 1
        and row["architecture"] != "standard"
        and (number(row["speedup_vs_standard"]) or 0) > 0
    ]


def where(rows: Sequence[Row]) -> str:
    """`<device>, link <link>, engine <engine>, float32`, from what the rows say."""
    words = [" and ".join(distinct(rows, "device")) or "an unknown device"]
    for name in ("link", "engine"):
        if found := [value for value in distinct(rows, name) if value != "none"]:
            words.append(f"{name} {' and '.join(found)}")
    return ", ".join([*words, *distinct(rows, "dtype")])


def how(rows: Sequence[Row]) -> str:
    """`measured on <where>` or `simulated for <where>`."""
    sources = distinct(rows, "source")
    return f"{' and '.join(sources) or 'of unknown source'} {'on' if sources == ['measured'] else 'for'} {where(rows)}"


def headline(rows: Sequence[Row]) -> str:
    """Kraken's mean speed-up, of measured rows where there are any, and that over the best form of standard."""
    krakens = [row for row in shared(rows) if row["architecture"] == "kraken"]
    krakens.sort(key=lambda row: row["source"] != "measured")
    if not krakens:
        return "No row has Kraken on two ranks or more beside standard, so there is no speed-up to report."
    kraken = split(krakens, SETTING)[0]
    speedups = [float(row["speedup_vs_standard"]) for row in kraken]
    text = (
        f"Kraken\u2019s first token arrives {times(geometric_mean(speedups))} as fast as standard\u2019s: the "
        f"geometric mean over {plural(len(kraken), 'cell')} (size, ranks and context) with two ranks or more, from "
        f"{times(min(speedups))} to {times(max(speedups))}, {how(kraken)}; it takes "
        f"{less(geometric_mean(speedups))} time."
    )
    over_best = geometric_mean([over_best_other(row, rows) for row in kraken])
    return (
        f"{text} Against the fastest other row of each cell it is {times(over_best)} as fast and takes "
        f"{less(over_best)} time. The paper\u2019s 35.6%, read as a speed-up of {times(float(PAPER_SPEEDUP))}, is "
        f"{less(float(PAPER_SPEEDUP))}."
    )


def over_best_other(row: Row, rows: Sequence[Row]) -> float:
    """How many times as fast a row is as the fastest other row of its cell (standard, if there is no other)."""
    same = [other for other in rows if all(other.get(key) == row.get(key) for key in (*CELL, "context"))]
    others = [number(other["speedup_vs_standard"]) for other in same if other["architecture"] != row["architecture"]]
    return float(row["speedup_vs_standard"]) / max((value for value in others if value), default=1.0)


def less(speedup: float) -> str:
    """`20.0% less` or `5.3% more`: of the time, at so many times the speed."""
    return f"{abs(100 * (1 - 1 / speedup)):.1f}% {'less' if speedup >= 1 else 'more'}"


def is_drifted(row: Row) -> bool:
    return row.get("drifted", "").lower() in ("true", "1")


def spread(rows: Sequence[Row]) -> str:
    """Runs and their spread, of what was measured."""
    measured = [row for row in rows if row["source"] == "measured"]
    ratios = [
        100 * deviation / median
        for row in measured
        if (deviation := number(row["ttft_ms_std"])) is not None and (median := number(row["ttft_ms_median"]))
    ]
    text = "Nothing here was measured: every figure is simulated"
    if measured:
        text = f"Each measured figure is the median of {span([row['runs'] for row in measured])} runs"
    if ratios:
        text += f"; the standard deviation of the runs is {min(ratios):.1f}% to {max(ratios):.1f}% of the median"
    drifted = sum(map(is_drifted, measured))
    if drifted:
        text += (
            f"; {plural(drifted, 'row')} of {len(measured)} drifted: the first and the second half of the runs differ"
        )
    disturbed = max((number(row.get("other_load", "")) or 0.0 for row in measured), default=0.0)
    if disturbed > DISTURBING_LOAD:
        text += f". Other work kept up to {disturbed:.1f} cores busy meanwhile, so these times are disturbed"
    return f"{text}. Weights are random: the time does not depend on what a model has learnt, nor on the text."


def speedup_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis of every chart of speed-ups, so that they compare."""
    columns = ("speedup_vs_standard", "speedup_ci_low", "speedup_ci_high")
    found = [value for row in rows for key in columns if (value := number(row.get(key, ""))) is not None]
    return min([1.0, *found]), max([1.05, *found])


def group(rows: list[Row], palette: Palette, limits: tuple[float, float]) -> Group:
    """Both charts of one size and number of ranks; `limits` of the axis of speed-ups."""
    title = f"{rows[0]['size']}, {plural(int(number(rows[0]['tp']) or 0), 'rank')}"
    if (link := rows[0]["link"]) not in ("", "none"):
        title += f", {link}"
    key = [Sample(name, name) for name in dict.fromkeys(row["architecture"] for row in rows)]
    times_of = [point(row, palette, "ttft_ms_median") for row in rows if number(row["ttft_ms_median"]) is not None]
    speedups = [
        point(row, palette, "speedup_vs_standard")
        for row in rows
        if row["architecture"] != "standard" and number(row["speedup_vs_standard"]) is not None
    ]
    figures = [
        Figure(
            "Time to first token",
            f"Time to first token in milliseconds against the context, {title}; the table below has the figures.",
            bars_by_context(times_of, palette, "TTFT, ms"),
        )
    ]
    if speedups:
        figures.append(
            Figure(
                "Speed-up over standard",
                f"Speed-up over standard against the context, {title}; the table below has the figures.",
                dots_by_context(speedups, palette, "TTFT of standard / TTFT", limits, 1),
            )
        )
    return Group(title, figures, caption(rows), key)


def over_several_links(rows: Sequence[Row]) -> list[list[Row]]:
    """Measured speed-ups of one size, number of ranks and context, where more than one link was measured."""
    cell = (*(key for key in CELL if key != "link"), "context")
    measured = [
        row for row in shared(rows) if row["source"] == "measured" and number(row.get("link_gbit_measured", ""))
    ]
    return [part for part in split(measured, cell) if len(distinct(part, "link")) > 1]


def by_link(rows: list[Row], palette: Palette, limits: tuple[float, float]) -> Group:
    """Speed-up against the bandwidth that AllReduces got, at one context."""
    size, ranks = rows[0]["size"], plural(int(number(rows[0]["tp"]) or 0), "rank")
    title = f"{size}, {ranks}, context {rows[0]['context']}, over links"
    points = [
        point(row, palette, "speedup_vs_standard") | {"bandwidth": number(row["link_gbit_measured"])} for row in rows
    ]
    figure = Figure(
        "Speed-up over standard",
        f"Speed-up over standard against the link\u2019s bandwidth, {title}; the table below has the figures.",
        lines_by_bandwidth(points, palette, "TTFT of standard / TTFT", limits, 1),
    )
    key = [Sample(name, name) for name in distinct(rows, "architecture")]
    return Group(title, [figure], f"{caption(rows)} Bandwidth as AllReduces got it before the rows.", key)


def point(row: Row, palette: Palette, column: str) -> dict:
    """A value with its interval, and what is said of it under the pointer."""
    timed = column == "ttft_ms_median"
    ends = ("ci_low", "ci_high") if timed else ("speedup_ci_low", "speedup_ci_high")
    value, (low, high) = number(row[column]), (number(row.get(end, "")) for end in ends)
    if low is None or high is None:
        low = high = None
    show = digits if timed else times
    interval = "" if low is None else f", 95% interval {show(low)} to {show(high)}"
    degree = f", degree {row['degree']}" if row["degree"] not in ("", "1") else ""
    return {
        "series": f"{row['architecture']} {row['degree']}",
        "place": palette.place(row["architecture"]),
        "context": int(number(row["context"]) or 0),
        "value": value,
        "low": low,
        "high": high,
        "text": f"{row['architecture']}{degree}, context {row['context']}: {show(value)}{' ms' if timed else ''}"
        f"{interval} ({row['source']})",
    }


def caption(rows: list[Row]) -> str:
    parts = [sentence(how(rows)), f"batch {span([row['batch'] for row in rows])}"]
    if runs := span([row["runs"] for row in rows]):
        parts.append(f"median of {runs} runs each")
    if any(row["ci_low"] for row in rows):
        parts.append("thin lines: 95% intervals")
    if order := " and ".join(distinct(rows, "interleave")):
        parts.append(f"order of the runs: {order}")
    return "; ".join(parts) + "."


def summary(rows: Sequence[Row]) -> Table:
    """Geometric means by architecture and setting, with the paper's figure below."""
    columns = [
        Column("architecture", "architecture"),
        Column("mean", "speed-up", times, "geometric mean over cells of TTFT of standard over TTFT of this"),
        Column("saved", "time, over standard", less, "than standard, at this mean: 1 - 1 / speed-up"),
        Column("best", "over the best other", times, "geometric mean of the fastest other row\u2019s TTFT over this"),
        Column("best_saved", "time, over best other", less, "than that row"),
        Column("low", "lowest", times),
        Column("high", "highest", times),
        Column("cells", "cells", count, "combinations of size, ranks (two or more) and context"),
        Column("source", "source"),
        Column("where", "where"),
    ]
    cells = []
    for part in split(shared(rows), ("architecture", *SETTING)):
        speedups = [number(row["speedup_vs_standard"]) for row in part]
        name, mean = part[0]["architecture"], geometric_mean(speedups)
        best = geometric_mean([over_best_other(row, rows) for row in part])
        cells.append(
            [
                Cell(name, name, name),
                *(cell for value in (mean, best) for cell in (Cell(times(value), repr(value)), saved_cell(value))),
                *(Cell(times(value), repr(value)) for value in (min(speedups), max(speedups))),
                Cell(str(len(part)), str(len(part))),
                *(Cell(text, text) for text in (part[0]["source"], where(part))),
            ]
        )
    speedup = float(PAPER_SPEEDUP)
    cells.append(
        [
            Cell("kraken (paper)", "kraken (paper)", "kraken"),
            Cell(times(speedup), PAPER_SPEEDUP),
            saved_cell(speedup),
            *(Cell("") for _ in range(5)),
            *(Cell(text, text) for text in ("published", PAPER_WHERE)),
        ]
    )
    return Table("ttft-summary", "Speed-up over standard at two ranks or more", columns, cells)


def saved_cell(speedup: float) -> Cell:
    return Cell(less(speedup), repr(1 - 1 / speedup))


def ratio(value: object) -> str:
    return times(number(value))


def every_cell(rows: Sequence[Row]) -> Table:
    columns = [
        Column("architecture", "architecture"),
        Column("size", "size"),
        Column("tp", "ranks", count, "tensor-parallel ranks"),
        Column("context", "context", count, "tokens of the prompt"),
        Column("ttft_ms_median", "median, ms", digits),
        Column("interval", "95% interval, ms", None, "of the median", result=True),
        Column("speedup_vs_standard", "speed-up", ratio),
        Column("speedup_interval", "95% interval", None, "of the speed-up", result=True),
        Column("ttft_ms_std", "std, ms", partial(digits, significant=3), "standard deviation of the runs"),
        Column("ttft_ms_p95", "p95, ms", digits, "that 95% of the runs do not exceed"),
        Column("tpot_ms_median", "per output token, ms", digits, "median time of one more token behind the prompt"),
        Column("runs", "runs", count),
        Column("source", "source"),
        Column("moved", "drifted", None, "whether the first and the second half of the runs differ"),
        Column("degree", "degree", count, "number of Kraken's splits"),
        Column("batch", "batch", count),
        Column("layers_measured", "layers", count, "layers that were timed; the others take what a layer takes"),
        Column(
            "link_gbit_measured",
            "link, Gbit/s",
            digits,
            "what AllReduces of 0.5 to 2 MiB got from the link, measured before the rows",
        ),
        Column("engine", "engine"),
        Column("device", "device"),
    ]
    return table("ttft-table", "Every cell", columns, [row | shown(row) for row in rows])


def shown(row: Row) -> dict[str, str]:
    """Whether a row drifted, where that is known, and its intervals; standard has none of a speed-up over itself."""
    speedup = [row.get(key, "") for key in ("speedup_ci_low", "speedup_ci_high")]
    own = row["architecture"] == "standard" or not all(map(number, speedup))
    return {
        "moved": ("yes" if is_drifted(row) else "no") if row.get("drifted") else "",
        "interval": comparisons.interval(row),
        "speedup_interval": "" if own else " to ".join(f"{number(text):.2f}" for text in speedup),
    }
