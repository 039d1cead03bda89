"""What differs between models: comparisons.csv as tables for the sections on perplexity and SuperGLUE."""

from collections.abc import Callable, Sequence

from krakenlm.report.elements import Cell, Column, Table
from krakenlm.report.numbers import Row, digits, distinct, number, plural

NEEDED = (
    "model", "against", "measure", "data", "difference", "ci_low", "ci_high", "p_value", "margin", "p_equivalence",
    "verdict", "seeds", "n",
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
    margins = " and ".join(map(digits, distinct(rows, "margin")))
    return (
        f"Two models on the same documents or examples, {plural(len(rows), 'comparison')}: different in "
        f"{counts['different']} (p below 0.05; in about {0.05 * len(rows):.0f} if no two differed), equivalent within "
        f"{margins} in {counts['equivalent']}, and in {counts['neither']} no difference at this sample size, which "
        "does not mean that they are equal."
    )


def table(name: str, caption: str, rows: Sequence[Row]) -> list[Table]:
    """One table, or none without rows: every pair of models with its difference, interval, margin and verdict."""
    if not rows:
        return []
    columns = [
        Column("model", "model"),
        Column("against", "less"),
        Column("measure", "measure"),
        Column("difference", "difference", str),
        Column("interval", "95% interval"),
        Column("p_value", "p", str, "of a difference at least this large if there is none"),
        Column("margin", "margin", str, "differences within it do not matter"),
        Column("p_equivalence", "p of equivalence", str, "two one-sided tests; below 0.05 it lies within the margin"),
        Column("verdict", "verdict"),
        Column("seeds", "seeds", str, "with one, the spread between trainings is not in the interval"),
        Column("n", "documents or examples", str),
    ]
    return [Table(name, caption, columns, [cells(row) for row in rows])]


def cells(row: Row) -> list[Cell]:
    return [
        Cell(row["model"], row["model"]),
        Cell(row["against"], row["against"]),
        Cell(row["measure"], row["measure"]),
        Cell(signed(row["difference"]), row["difference"]),
        Cell(interval(row, signed)),
        Cell(digits(row["p_value"], 2), row["p_value"]),
        Cell(digits(row["margin"]), row["margin"]),
        Cell(digits(row["p_equivalence"], 2), row["p_equivalence"]),
        Cell(row["verdict"], row["verdict"]),
        Cell(row["seeds"], row["seeds"]),
        Cell(row["n"], row["n"]),
    ]


def signed(text: str) -> str:
    value = number(text)
    return text if value is None else f"{value:+.4f}"


def interval(row: Row, show: Callable[[str], str] = digits) -> str:
    """`low to high` of a row's ci_low and ci_high, "" where they are not known."""
    if number(row.get("ci_low", "")) is None or number(row.get("ci_high", "")) is None:
        return ""
    return f"{show(row['ci_low'])} to {show(row['ci_high'])}"
