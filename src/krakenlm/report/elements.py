"""What the page is made of: sections, groups of charts, tables. page.html turns them into HTML.

The exact text of a CSV travels in every cell beside what is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from krakenlm.report.numbers import Row, count, number, short

# How settings are shown, as text and numbers that were chosen; what was measured is shown in other ways.
SETTINGS = (None, count, short)


@dataclass(frozen=True)
class Figure:
    """A chart: its title, what it shows in words for those who do not see it, and its Vega-Lite specification."""

    title: str
    description: str
    spec: dict


@dataclass(frozen=True)
class Group:
    """Charts below one title, with one legend and one caption."""

    title: str
    figures: list[Figure]
    caption: str
    legend: list["Sample"] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """An entry of a legend: its name, the architecture whose colour it has (or `part-<n>`, of a part of a bar), and of
    lines the pattern of dashes."""

    name: str
    architecture: str
    dash: str = ""
    place: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page: sentences, a summary, charts, a grid to explore, tables, closing sentences, tables to
    unfold. Where there are no charts and tables, the sentences say why."""

    name: str
    title: str
    lead: list[str]
    summary: "Table | None" = None
    groups: list[Group] = field(default_factory=list)
    tables: list["Table"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list["Table"] = field(default_factory=list)
    explorer: dict | None = None  # the data of simulation.js, which shows one cell of a grid


@dataclass(frozen=True)
class Cell:
    """What is shown, and the value that it sorts by and stands for."""

    text: str
    value: str = ""
    architecture: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """One column: its key in the rows, its head, how its values are shown, the head's explanation, and whether a text
    in it is a result, which has its place in every row."""

    key: str
    title: str
    show: Callable[[object], str] | None = None
    explanation: str = ""
    result: bool = False

    @property
    def numeric(self) -> bool:
        return self.show is not None

    def cell(self, row: Row) -> Cell:
        value = row.get(self.key) or ""
        text = self.show(value) if self.show and value else value
        return Cell(text, value, row.get("architecture", "") if self.key in ("model", "architecture") else "")


@dataclass(frozen=True)
class Table:
    """A table of the page; `columns` have `title`, `numeric`, `explanation`; `same` is what holds for every row."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    same: str = ""


def table(name: str, caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A table of chosen columns. One without a value in any row is left out, one setting of all said once, above."""
    kept = [column for column in columns if any(row.get(column.key) for row in rows)]
    settings = [column for column in kept[1:] if column.show in SETTINGS and not column.result]
    once = [column for column in settings if len(rows) > 1 and len({row.get(column.key) for row in rows}) == 1]
    kept = [column for column in kept if column not in once]
    same = "; ".join(f"{column.title} {column.cell(rows[0]).text}" for column in once)
    return Table(name, caption, kept, [[column.cell(row) for column in kept] for row in rows], same)


def verbatim(name: str, caption: str, rows: Sequence[Row]) -> Table | None:
    """Every row and column of a CSV, text as it is; None without rows."""
    if not rows:
        return None
    columns = [Column(key, key, str if any(number(row[key]) is not None for row in rows) else None) for key in rows[0]]
    return Table(name, caption, columns, [[Cell(row[key], row[key]) for key in rows[0]] for row in rows])
