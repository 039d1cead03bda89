"""The page's section on the trained models' engines."""

from collections.abc import Sequence
from functools import partial

from krakenlm.report.elements import Column, Figure, Group, Section, Table, table, verbatim
from krakenlm.report.figures import Palette, dots
from krakenlm.report.numbers import Row, count, digits, distinct, number, plural, span

NEEDED = (
    "model", "architecture", "degree", "tp", "prompts", "prompt_tokens", "new_tokens", "identical",
    "max_logit_difference", "ttft_ms_median", "ttft_ms_std", "tokens_per_second", "device", "runs", "seed",
)  # fmt: skip


def section(rows: Sequence[Row], palette: Palette) -> Section:
    """Does an engine generate what its whole model generates, and how fast?"""
    if not rows:
        return Section("engines", "Engines", ["No engine was built in this run."])
    groups = [group(rows, palette)] if any(number(row["ttft_ms_median"]) is not None for row in rows) else []
    return Section(
        "engines",
        "Engines",
        [agreement(rows)],
        groups=groups,
        tables=[every_engine(rows)],
        details=[verbatim("engines-verbatim", "engines.csv as it is", rows)],
    )


def is_identical(row: Row) -> bool:
    return row["identical"].lower() in ("true", "1", "yes")


def agreement(rows: Sequence[Row]) -> str:
    same = [row for row in rows if is_identical(row)]
    prompts, length, new = (span([row[key] for row in rows]) for key in ("prompts", "prompt_tokens", "new_tokens"))
    text = (
        f"{len(same)} of {plural(len(rows), 'engine')} generate token for token what the whole, unsharded model "
        f"generates ({prompts} prompts of {length} tokens, {new} new tokens each)."
    )
    if differing := [f"{row['model']} at {row['tp']} ranks" for row in rows if not is_identical(row)]:
        text += f" These differ: {', '.join(differing)}."
    differences = [value for row in rows if (value := number(row["max_logit_difference"])) is not None]
    return text + (f" Largest difference of a logit: {digits(max(differences), 2)}." if differences else "")


def group(rows: Sequence[Row], palette: Palette) -> Group:
    values = [dot(row, palette) for row in rows if number(row["ttft_ms_median"]) is not None]
    figure = Figure(
        "TTFT of the trained models, ms",
        "Time to first token of each trained model's engine; the table below has the figures.",
        dots(values, palette, "TTFT, ms"),
    )
    data = " and ".join(distinct(rows, "data"))
    details = [
        f"Measured on {' and '.join(distinct(rows, 'device')) or 'an unknown device'}",
        *(f"{name} {' and '.join(distinct(rows, name))}" for name in ("link", "engine") if distinct(rows, name)),
        f"prompts of {span([row['prompt_tokens'] for row in rows])} tokens{data and f' from {data}'}",
        f"median of {span([row['runs'] for row in rows])} runs, bars one standard deviation to either side",
    ]
    return Group("Time to first token", [figure], ", ".join(details) + ".")


def dot(row: Row, palette: Palette) -> dict:
    value, deviation = float(row["ttft_ms_median"]), number(row["ttft_ms_std"])
    name = f"{row['model']}, tp {row['tp']}"
    spread = "std unknown" if deviation is None else f"std {digits(deviation, 3)}"
    return {
        "label": name,
        "place": palette.place(row["architecture"]),
        "value": value,
        "low": None if deviation is None else value - deviation,
        "high": None if deviation is None else value + deviation,
        "text": f"{name}, seed {row['seed']}: {digits(value)} ms, {spread}",
    }


def every_engine(rows: Sequence[Row]) -> Table:
    columns = [
        Column("model", "model"),
        Column("agrees", "same tokens", None, "as the whole model"),
        Column("max_logit_difference", "logits differ by", partial(digits, significant=2), "at most"),
        Column("ttft_ms_median", "TTFT, ms", digits, "median"),
        Column("ttft_ms_std", "std, ms", partial(digits, significant=3), "standard deviation of the runs"),
        Column("tokens_per_second", "tokens/s", digits, "while generating"),
        Column("tp", "ranks", count, "tensor-parallel ranks"),
        Column("degree", "degree", count, "number of Kraken's splits"),
        Column("seed", "seed", count),
        Column("runs", "runs", count),
        Column("prompts", "prompts", count),
        Column("link", "link"),
        Column("device", "device"),
        Column("data", "data"),
    ]
    shown = [row | {"agrees": "yes" if is_identical(row) else "no"} for row in rows]
    return table("engines-table", "Engines of the trained models", columns, shown)
