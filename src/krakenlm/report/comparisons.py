"""What differs between models: comparisons.csv as tables for the sections on perplexity and SuperGLUE."""

from collections.abc import Callable, Sequence

from krakenlm.report import elements
from krakenlm.report.elements import Column, Table
from krakenlm.report.numbers import Row, count, digits, distinct, number, plural, short

NEEDED = (
    "model", "against", "measure", "data", "difference", "ci_low", "ci_high", "p_value", "margin", "p_equivalence",
    "verdict", "seeds", "n", "items", "test",
)  # fmt: skip


def is_loss(row: Row) -> bool:
    return row["measure"].startswith("loss,")


def sentence(rows: Sequence[Row]) -> str:
    """How many comparisons came out how; "" without rows."""
    if not rows:
        return ""
    verdicts = [row["verdict"] for row in rows]
    counts = {
        "different": sum("different" in verdict for verdict in verdicts),
        "equivalent": sum("equivalent" in verdict for verdict in verdicts),
        "neither": sum(verdict.startswith("no difference") for verdict in verdicts),
    }
    margins = " and ".join(map(short, distinct(rows, "margin")))
    return (
        f"Two models on the same documents or examples, {plural(len(rows), 'comparison')}: different in "
        f"{counts['different']} (p below 0.05; in about {0.05 * len(rows):.0f} if no two differed), equivalent within "
        f"{margins} in {counts['equivalent']} (the 90% interval lies within that; a small difference can be both), "
        f"and in {counts['neither']} no difference at this sample size, which does not mean that they are equal."
    )


def table(name: str, caption: str, rows: Sequence[Row]) -> list[Table]:
    """One table, or none without rows: every pair of models with its difference, interval, margin and verdict."""
    if not rows:
        return []
    columns = [
        Column("model", "model"),
        Column("against", "against"),
        Column("measure", "measure"),
        Column("difference", "difference", signed, "of the first less the second"),
        Column("interval", "95% interval", None, "of the difference", result=True),
        Column("p_value", "p", probability, "of a difference at least this large if there is none"),
        Column("margin", "margin", short, "differences within it do not matter"),
        Column("p_equivalence", "p of equivalence", probability, "below 0.05 the 90% interval lies within the margin"),
        Column("verdict", "verdict", result=True),
        Column("test", "test", None, "behind p; beside the exact McNemar test, interval and equivalence are Tango's"),
        Column("seeds", "seeds", short, "with one, the spread between trainings is not in the interval"),
        Column("n", "n", count, "documents or examples; of MultiRC paragraphs, of ReCoRD passages"),
    ]
    return [elements.table(name, caption, columns, [row | {"interval": interval(row, signed)} for row in rows])]


def probability(text: str) -> str:
    """At two digits; what is next to nothing as below 0.001."""
    value = number(text)
    return "< 0.001" if value is not None and value < 0.001 else digits(text, 2)


def signed(text: str) -> str:
    value = number(text)
    return text if value is None else f"{value:+.4f}"


def interval(row: Row, show: Callable[[str], str] = digits) -> str:
    """`low to high` of a row's ci_low and ci_high, "" where they are not known."""
    if number(row.get("ci_low", "")) is None or number(row.get("ci_high", "")) is None:
        return ""
    return f"{show(row['ci_low'])} to {show(row['ci_high'])}"
