"""The page's section on simulated time to first token: where Kraken pays, and a grid to look around in.

Everything stands in the page, compactly: a row is a list of numbers, a name its place in a list of names.
"""

import itertools
import math
from collections.abc import Sequence

from krakenlm.report import timeline
from krakenlm.report.elements import Column, Figure, Group, Section, Table, table
from krakenlm.report.figures import Palette, squares
from krakenlm.report.numbers import Row, count, distinct, geometric_mean, number, plural, times
from krakenlm.report.ttft import PAPER_SPEEDUP, PAPER_WHERE

PARTS = (
    "norm", "gemm", "gemm_overlapped", "attention", "lm_head", "other", "all_reduce_exposed", "all_reduce_hidden",
)  # fmt: skip
KEYS = ("hardware", "size", "context", "batch", "tp")
NEEDED = (
    *KEYS, "architecture", "degree", "ttft_ms_median", "speedup_vs_standard", "source", "memory_gb", "fits",
    "parameters", *(f"{part}_ms" for part in PARTS),
)  # fmt: skip
LAYERS_NEEDED = (*KEYS, "architecture", "degree", "stream", "part", "name", "start_us", "end_us")
DIGITS = 4  # of the numbers in the page
STRONG = 3.0  # a speed-up of this and more, or its inverse, has the full colour
# The paper's machine, ranks, contexts and sizes.
PAPER_MACHINE, PAPER_RANKS, PAPER_CONTEXTS = "a100-40gb", ("4", "8"), ("128", "2048")
PAPER_SIZES = ("1.3b", "6.7b", "13b", "65b", "175b")


def section(rows: Sequence[Row], layers: Sequence[Row], palette: Palette) -> Section:
    """Where Kraken pays, by machine, ranks and context; every cell to choose, with where its time goes."""
    title = "Machines that are not here"
    if not rows:
        return Section("simulation", title, ["No time to first token was simulated in this run."])
    machines = distinct(rows, "hardware")
    return Section(
        "simulation",
        title,
        [
            headline(rows),
            "Nothing here was measured, and nothing is fitted to the paper\u2019s figures: docs/simulator.md says how "
            "a prediction is made, from which measured kernels, how far it is off, and what is assumed.",
        ],
        groups=[pays(rows), *timeline.groups(layers)],
        tables=[*paper_grid(rows), means(rows)],
        notes=[
            f"Machines: {', '.join(machines)}. A Kraken here has as many splits as there are ranks.",
            *([] if layers else ["The simulation\u2019s layers.csv is missing: no timeline of a layer can be shown."]),
        ],
        explorer=explorer(rows, layers, palette),
    )


def usual(rows: Sequence[Row]) -> list[Row]:
    """Krakens with a split per rank, at the least batch, where they and standard have room on a device."""
    least = min(rows, key=lambda row: number(row["batch"]) or 0)["batch"]
    roomy = {cell(row) for row in rows if row["architecture"] == "standard" and row["fits"] == "True"}
    return [
        row
        for row in rows
        if row["architecture"] == "kraken"
        and row["degree"] == row["tp"]
        and row["batch"] == least
        and row["fits"] == "True"
        and cell(row) in roomy
        and number(row["speedup_vs_standard"])
    ]


def cell(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in KEYS)


def speedups(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[float]]:
    """{(machine, ranks, context): Kraken's speed-up over standard of each size}"""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in usual(rows):
        key = (row["hardware"], row["tp"], row["context"])
        found.setdefault(key, []).append(float(row["speedup_vs_standard"]))
    return found


def headline(rows: Sequence[Row]) -> str:
    found = speedups(rows)
    if not found:
        return "No machine has room for both Kraken and standard on two ranks or more."
    means = {key: geometric_mean(values) for key, values in found.items()}
    best, least = max(means, key=means.get), min(means, key=means.get)

    def told(key: tuple[str, str, str]) -> str:
        return f"on {key[1]} ranks of {key[0]} at context {count(key[2])}, {times(means[key])} as fast as standard"

    return (
        f"Kraken pays most {told(best)}, and least {told(least)} (simulated; geometric means over the sizes that fit)."
    )


def pays(rows: Sequence[Row]) -> Group:
    """A plot for each context: a row for each machine, a column for each number of ranks."""
    found = speedups(rows)
    values: dict[str, list[dict]] = {context: [] for context in sorted({key[2] for key in found}, key=int)}
    for (machine, tp, context), each in found.items():
        mean = geometric_mean(each)
        values[context].append(
            {
                "row": machine,
                "column": tp,
                "faster": "kraken" if mean >= 1 else "standard",
                "strength": min(abs(math.log(mean) / math.log(STRONG)), 1.0),
                "shown": f"{mean:.2f}",
                "text": f"{machine}, {tp} ranks, context {int(context):,}: {times(mean)}, "
                f"{times(min(each))} to {times(max(each))} over {plural(len(each), 'size')}",
            }
        )
    machines = distinct(rows, "hardware")
    figures = [
        Figure(
            f"context {int(context):,}",
            f"Kraken\u2019s speed-up over standard at context {int(context):,}, a field for each machine and number of "
            "ranks; the table has them.",
            squares(part, [machine for machine in machines if any(v["row"] == machine for v in part)], "ranks"),
        )
        for context, part in values.items()
    ]
    batch = " and ".join(distinct(usual(rows), "batch"))
    caption = (
        "Geometric mean of standard\u2019s simulated TTFT over Kraken\u2019s, over the sizes of which both fit on a "
        f"device; batch {batch}, a split per rank. Above 1 (in Kraken\u2019s colour) Kraken is faster, below 1 (in "
        "standard\u2019s) standard. No field: none fits, or the ranks are more than there are."
    )
    return Group("Where Kraken pays", figures, caption)


def paper_grid(rows: Sequence[Row]) -> list[Table]:
    """Mean speed-ups over the paper's grid beside the paper's one; none where nothing of it is there.

    A mean stands only where all that it is said to be over was simulated. Sizes without room on a device count, too:
    the paper timed them.
    """
    least = min((row["batch"] for row in rows), key=int)
    grid = [
        row
        for row in rows
        if (row["hardware"], row["batch"]) == (PAPER_MACHINE, least)
        and row["tp"] in PAPER_RANKS
        and row["context"] in PAPER_CONTEXTS
        and row["size"] in PAPER_SIZES
        and row["architecture"] != "standard"
        and (row["architecture"] != "kraken" or row["degree"] == row["tp"])
        and number(row["speedup_vs_standard"])
    ]
    if not grid:
        return []
    sizes, contexts = distinct(grid, "size"), sorted(distinct(grid, "context"), key=int)
    lines = []
    for name in distinct(grid, "architecture"):
        found = {
            (row["tp"], row["context"], row["size"]): float(row["speedup_vs_standard"])
            for row in grid
            if row["architecture"] == name
        }
        line = {"architecture": name, "source": "simulated"}
        grids = {tp: ((tp,), contexts, sizes) for tp in PAPER_RANKS}
        for key, cells in {**grids, "both": (PAPER_RANKS, PAPER_CONTEXTS, PAPER_SIZES)}.items():
            values = [found.get(cell) for cell in itertools.product(*cells)]
            line[key] = repr(geometric_mean(values)) if all(values) else ""
        lines.append(line)
    lines.append({"architecture": "kraken (paper)", "both": PAPER_SPEEDUP, "source": f"published, {PAPER_WHERE}"})
    columns = [
        Column("architecture", "architecture"),
        Column("4", "4 ranks", ratio),
        Column("8", "8 ranks", ratio),
        Column("both", "4 and 8 ranks", ratio, "geometric mean, where all of the paper\u2019s grid was simulated"),
        Column("source", "source"),
    ]
    caption = (
        f"The paper\u2019s grid: speed-up over standard on {PAPER_MACHINE}, context "
        f"{' and '.join(map(count, contexts))}, sizes {', '.join(sizes)}; other than elsewhere in this "
        "section, sizes that do not fit on a device count, too"
    )
    return [table("simulation-paper", caption, columns, lines)]


def means(rows: Sequence[Row]) -> Table:
    """Kraken's mean speed-up by machine and ranks over contexts and sizes."""
    found = []
    for (machine, tp, context), values in sorted(speedups(rows).items(), key=lambda each: each[0][0]):
        found.append(
            {
                "hardware": machine, "tp": tp, "context": context, "sizes": str(len(values)),
                "mean": repr(geometric_mean(values)), "low": repr(min(values)), "high": repr(max(values)),
            }
        )  # fmt: skip
    columns = [
        Column("hardware", "machine"),
        Column("tp", "ranks", count),
        Column("context", "context", count),
        Column("mean", "Kraken over standard", ratio, "geometric mean over sizes, simulated"),
        Column("low", "lowest", ratio),
        Column("high", "highest", ratio),
        Column("sizes", "sizes", count, "sizes of which both fit on a device"),
    ]
    return table("simulation-means", "Kraken over standard, simulated", columns, found)


def ratio(value: object) -> str:
    return times(number(value))


def explorer(rows: Sequence[Row], layers: Sequence[Row], palette: Palette) -> dict:
    """What simulation.js shows one cell of: names, rows of numbers, and what runs when in one layer of some models."""
    names = {key: distinct(rows, key) for key in (*KEYS, "architecture")}
    names["part"], names["event"] = list(PARTS), distinct(layers, "name")
    places = {key: {name: place for place, name in enumerate(values)} for key, values in names.items()}

    def coded(row: Row) -> list:
        return [*(places[key][row[key]] for key in (*KEYS, "architecture")), int(row["degree"] or 0)]

    timelines: dict[tuple, list[Row]] = {}
    parts = {part: place for place, part in enumerate([*PARTS, "all_reduce"])}
    for row in layers:
        if row["hardware"] in places["hardware"]:
            timelines.setdefault(tuple(coded(row)), []).append(row)

    def event(row: Row) -> list:
        return [
            int(row["stream"] == "communication"), parts[row["part"]], places["event"][row["name"]],
            short(row["start_us"]), short(row["end_us"]),
        ]  # fmt: skip

    return {
        "names": names,
        "places": [palette.place(name) for name in names["architecture"]],
        "rows": [
            [
                *coded(row), short(row["ttft_ms_median"]), short(row["memory_gb"]), int(row["fits"] == "True"),
                *(short(row[f"{part}_ms"]) for part in PARTS),
            ]
            for row in rows
        ],
        "timelines": [
            [*key, [short(value) for value in timeline.amounts(events)], [event(row) for row in events]]
            for key, events in timelines.items()
        ],
    }  # fmt: skip


def short(text: str) -> float | int | None:
    """A number at DIGITS digits, as few characters of JSON as that takes."""
    value = number(text)
    if value is None:
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded == int(rounded) else rounded
