"""Numbers read from a CSV's text, and numbers as the page shows them."""

import math
import statistics
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]


def number(text: object) -> float | None:
    """The finite number that `text` says, else None."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def digits(text: object, significant: int = 4) -> str:
    """`1,234`, `12.34`, `0.001234` or `3.4e-05`: a number at so many digits; what is no number stays as it is."""
    value = number(text)
    if value is None:
        return str(text)
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e15):
        return f"{value:.{max(significant - 2, 1)}g}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1 + math.floor(math.log10(abs(value) or 1))
    return f"{value:,.{max(significant - whole, 0)}f}"


def count(text: object) -> str:
    """`124,012,302`: a whole number with its thousands apart."""
    value = number(text)
    return str(text) if value is None else f"{value:,.0f}"


def short(text: str) -> str:
    """`0.02`: a number without zeros at its end."""
    value = number(text)
    return text if value is None else f"{value:g}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}\u00d7"


def plural(n: int, one: str) -> str:
    return f"{n:,} {one if n == 1 else one + 's'}"


def span(values: Sequence[str]) -> str:
    """`10`, or `10 to 20` where the values differ; numbers only."""
    numbers = sorted({value for text in values if (value := number(text)) is not None})
    if not numbers:
        return ""
    first, last = (count(value) if value.is_integer() else digits(value) for value in (numbers[0], numbers[-1]))
    return first if first == last else f"{first} to {last}"


def distinct(rows: Sequence[Row], column: str) -> list[str]:
    """The values of a column that are not empty, each once, in the order of the table."""
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; of one value the second is not known."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def sentence(text: str) -> str:
    """The text with a capital at its start; `capitalize` would make small letters of all others."""
    return text[:1].upper() + text[1:]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
