"""The page's section on where the time to first token goes."""

from collections.abc import Sequence

from krakenlm.report.elements import Column, Figure, Group, Sample, Section, Table, table, verbatim
from krakenlm.report.figures import stacked_bars
from krakenlm.report.numbers import Row, count, digits, distinct, number, plural, sentence, span
from krakenlm.report.ttft import CELL, how, split

# Parts that add up to a prefill, in the order of a bar and of the colours --part-0, --part-1, ...: column and name.
PARTS = {
    "norm_ms": "norm",
    "gemm_ms": "GEMM",
    "gemm_overlapped_ms": "GEMM under an AllReduce",
    "attention_ms": "attention",
    "lm_head_ms": "LM head",
    "other_ms": "other",
    "all_reduce_exposed_ms": "AllReduce, exposed",
}
NEEDED = (
    "architecture", "size", "degree", "tp", "context", "batch", "engine", "device", "link", "runs", "prefill_ms",
    *PARTS, "all_reduce_hidden_ms", "source",
)  # fmt: skip


def section(rows: Sequence[Row]) -> Section:
    """A bar of parts for each architecture, by size, ranks and context."""
    name, title = "breakdown", "Where the time goes"
    if not rows:
        return Section(name, title, ["No prefill was profiled in this run."])
    runs = span([row["runs"] for row in rows])
    lead = [
        f"Prefills under torch.profiler on the first rank, {runs} {'run' if runs == '1' else 'runs'} each, none of "
        "them a timed one: the profiler takes time, so these are shares more than durations. The parts of a bar add up "
        "to the whole; AllReduces that run under compute (hidden) cost nothing and stand in the table alone.",
    ]
    if any((number(row[column]) or 0) < 0 for row in rows for column in PARTS):
        lead.append(
            "A part below zero is noise: fewer layers were run than the model has, and the part took no longer with "
            "more of them."
        )
    return Section(
        name,
        title,
        lead,
        groups=[group(part) for part in split(rows, CELL)],
        tables=[every_row(rows)],
        details=[verbatim("breakdown-verbatim", "ttft_breakdown.csv as it is", rows)],
    )


def group(rows: list[Row]) -> Group:
    """The bars of one size and number of ranks, a chart for each context."""
    title = f"{rows[0]['size']}, {plural(int(number(rows[0]['tp']) or 0), 'rank')}"
    if (link := rows[0]["link"]) not in ("", "none"):
        title += f", {link}"
    figures = [
        Figure(
            f"context {context}",
            f"Milliseconds of a prefill by what they go to, {title}, context {context}; the table below has figures.",
            stacked_bars(
                parts_of([row for row in rows if row["context"] == context]), list(PARTS.values()), "prefill, ms"
            ),
        )
        for context in distinct(rows, "context")
    ]
    legend = [Sample(name, "", place=f"part-{order}") for order, name in enumerate(PARTS.values())]
    return Group(title, figures, f"{sentence(how(rows))}.", legend)


def parts_of(rows: Sequence[Row]) -> list[dict]:
    """What a bar is stacked from."""
    return [
        {
            "label": " ".join(word for word in (row["architecture"], row["degree"]) if word),
            "part": name,
            "order": order,
            "value": value,
            "text": f"{row['architecture']}, {name}: {digits(value)} of {digits(row['prefill_ms'])} ms",
        }
        for row in rows
        for order, (column, name) in enumerate(PARTS.items())
        if (value := number(row[column])) is not None
    ]


def every_row(rows: Sequence[Row]) -> Table:
    columns = [
        Column("architecture", "architecture"),
        Column("size", "size"),
        Column("tp", "ranks", count),
        Column("context", "context", count),
        Column("prefill_ms", "prefill, ms", digits, "mean of the profiled runs"),
        *(Column(column, name, digits, "ms") for column, name in PARTS.items()),
        Column("all_reduce_hidden_ms", "AllReduce, hidden", digits, "ms under compute"),
        Column("link", "link"),
        Column("layers_measured", "layers", count, "layers that were run; the others take what a layer takes"),
    ]
    return table("breakdown-table", "Every profiled prefill, ms", columns, rows)
