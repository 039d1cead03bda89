"""What runs when in one layer of the simulated models: a chart of it, and the same in words."""

from collections.abc import Sequence

from krakenlm.report.breakdown import PARTS
from krakenlm.report.elements import Figure, Group, Sample
from krakenlm.report.figures import lanes
from krakenlm.report.numbers import Row, count, sentence

CELL = ("hardware", "size", "context", "batch", "tp")
COMPUTE = [column.removesuffix("_ms") for column in PARTS][:-1]  # the last is the AllReduce, exposed
NAMES = [*list(PARTS.values())[:-1], "AllReduce"]  # hidden or not: that says its place in the chart


def groups(layers: Sequence[Row]) -> list[Group]:
    """Standard and Kraken on the first machine, at its least ranks, at the first size and context; [] without them."""
    if not layers:
        return []
    machine = [row for row in layers if row["hardware"] == layers[0]["hardware"]]
    first = min(machine, key=lambda row: int(row["tp"]))
    models: dict[str, list[Row]] = {}
    for row in machine:
        if row["architecture"] in ("standard", "kraken") and all(row[key] == first[key] for key in CELL):
            name = f"kraken {row['degree']}-way" if row["degree"] else row["architecture"]
            models.setdefault(name, []).append(row)
    where = (
        f"{first['size']}, {first['tp']} ranks of {first['hardware']}, context {count(first['context'])}, "
        f"batch {first['batch']}"
    )
    words = sentence("; ".join(f"{name}: {told(*amounts(events))}" for name, events in models.items()))
    values = [bar(name, row) for name, events in models.items() for row in events]
    figure = Figure(
        "Compute above, AllReduces below",
        f"One layer, {where}. {words}.",
        lanes(values, NAMES, "time, \u00b5s"),
    )
    found = {value["part"] for value in values}
    legend = [Sample(name, "", place=f"part-{place}") for place, name in enumerate(NAMES) if name in found]
    caption = f"Simulated; one layer from the middle of each model. {words}."
    return [Group(f"What runs when in one layer: {where}", [figure], caption, legend)]


def bar(name: str, row: Row) -> dict:
    """An event of a model as `lanes` draws it."""
    start, end = float(row["start_us"]), float(row["end_us"])
    summed = row["stream"] == "communication"
    return {
        "label": f"{name}{', AllReduce' if summed else ''}",
        "part": NAMES[-1] if summed else NAMES[COMPUTE.index(row["part"])],
        "start": start,
        "end": end,
        "text": f"{name}, {row['name']}: {digits(end - start)} \u00b5s",
    }


def amounts(events: Sequence[Row]) -> tuple[float, float, float]:
    """Microseconds of a layer: all of it, its AllReduces, and what of these runs under compute."""
    spans = {
        stream: [(float(row["start_us"]), float(row["end_us"])) for row in events if row["stream"] == stream]
        for stream in ("compute", "communication")
    }
    sums = spans["communication"]
    hidden = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in sums
        for other_start, other_end in spans["compute"]  # which follow one another, so nothing is counted twice
    )
    return max(end for span in spans.values() for _, end in span), sum(end - start for start, end in sums), hidden


def told(whole: float, sums: float, hidden: float) -> str:
    """`layer 310 us, AllReduce 120 us, of which 115 hidden`; simulation.js says the same of each cell."""
    all_of_it, summed, beside = map(digits, (whole, sums, hidden))
    return f"layer {all_of_it} \u00b5s, AllReduce {summed} \u00b5s, of which {beside} hidden"


def digits(value: float) -> str:
    """`1,234`, `12.3`, `9.5`: three digits without zeros at their end, as in simulation.js."""
    return count(value) if value >= 1000 else f"{float(f'{value:.3g}'):g}"
