"""The page's section on what the models write."""

from collections.abc import Mapping

from krakenlm.report.elements import Column, Section, table
from krakenlm.report.numbers import count


def section(samples: Mapping, architectures: Mapping[str, str]) -> Section:
    """Every model's continuation of the same beginnings. `architectures`: model -> architecture."""
    name, title = "samples", "Samples"
    if not samples.get("samples"):
        return Section(name, title, ["No text was generated in this run."])
    drawn = samples["sampling"]
    columns = [
        Column("model", "model"),
        Column("prompt", "beginning", result=True),
        Column("text", "what the model wrote", result=True),
        Column("seed", "seed", count, "of the training"),
    ]
    rows = [sample | {"architecture": architectures.get(sample["model"], "")} for sample in samples["samples"]]
    rows.sort(key=lambda row: row["prompt"])
    lead = (
        f"The same beginnings of validation documents ({samples['data']}), continued by every model: tokens drawn at "
        f"temperature {drawn['temperature']} from the likeliest that have a probability of {drawn['top_p']} together, "
        f"seed {drawn['seed']}. Nothing was chosen or corrected. No score follows from so few."
    )
    return Section(name, title, [lead], tables=[table("samples-table", "Samples", columns, rows)])
