"""Models compared two by two on the same documents and examples: a difference, none seen, or equivalence."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pandas

from krakenlm.errors import InputError
from krakenlm.evaluation.proportions import PairedAnswers, paired_answers
from krakenlm.evaluation.statistics import Difference, paired_difference
from krakenlm.files import write_table

COLUMNS = (
    "model", "against", "measure", "data", "difference", "ci_low", "ci_high", "p_value", "test", "margin",
    "p_equivalence", "verdict", "seeds", "n", "items",
)  # fmt: skip
# How much of a difference does not matter, unless the user says otherwise: 0.02 nats a token are 2% of perplexity.
LOSS_MARGIN, SCORE_MARGIN = 0.02, 0.02
LEVEL = 0.05
# `test`, of p_value: right and wrong answers of one seed have their own.
MCNEMAR, T = "exact McNemar", "t"


def compare(
    perplexity: Path, superglue: Path, out: Path, loss_margin: float = LOSS_MARGIN, score_margin: float = SCORE_MARGIN
) -> list[dict]:
    """Write one row per pair of models and measure as CSV.

    `difference` is the model's score less that of `against`, both over the seeds that both have, with a 95% interval.
    Right and wrong answers of one seed have p_value from the exact McNemar test, interval and p_equivalence from
    Tango's score method (proportions.PairedAnswers); all else has the three from t (statistics.paired_difference).
    `test` says which. `n` counts documents and examples; answers about one paragraph (MultiRC) and queries about one
    passage (ReCoRD) depend on one another, so there it counts those, each with its sum of values. `items` counts the
    tokens or answers in them.

    `verdict` is "different" where p_value < 0.05, "equivalent" where p_equivalence < 0.05, both where both are, and
    "no difference at this sample size" where neither is. Nothing is corrected for the number of rows.

    Args:
        perplexity, superglue: results/perplexity.parquet and superglue.parquet.
        out: the CSV to write, with the columns of `COLUMNS`.
        loss_margin: nats a token within which losses count as equivalent.
        score_margin: the same of scores from 0 to 1.

    Raises:
        InputError: a table is missing or has other columns, or a margin is not above 0.
    """
    for name, margin in (("loss_margin", loss_margin), ("score_margin", score_margin)):
        if not margin > 0:
            raise InputError(f"{name}: expected a number above 0, found {margin}; raise it")
    losses = read(perplexity, ["model", "protocol", "data", "document", "nats", "tokens", "seed"])
    scores = read(superglue, ["model", "task", "metric", "data", "group", "value", "seed"])
    losses = losses.rename(columns={"document": "unit", "nats": "value", "tokens": "size"})
    losses["measure"] = "loss, " + losses["protocol"]
    # Of MultiRC the corrected figure alone: a better model has a lower one by lm-eval's labels.
    scores = scores[(scores["task"] != "multirc") | (scores["metric"] != "acc")]
    scores["measure"] = scores["task"] + ", " + scores["metric"]
    scores = by_group(scores)
    rows = [*pairs(losses, loss_margin), *pairs(scores, score_margin)]
    return write_table(out, rows, COLUMNS)


def read(path: Path, needed: list[str]) -> pandas.DataFrame:
    try:
        table = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a parquet table, found none that can be read ({error})") from None
    missing = [name for name in needed if name not in table]
    if missing:
        raise InputError(
            f"{path}: expected the columns {', '.join(needed)}, found no {', '.join(missing)}; score again"
        )
    return table


def by_group(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Examples of a group as one unit: its values' sum, and how many they are as `size`."""
    groups = scores.groupby(["model", "measure", "data", "seed", "group"], sort=False)["value"]
    return groups.agg(["sum", "size"]).reset_index().rename(columns={"group": "unit", "sum": "value"})


def pairs(table: pandas.DataFrame, margin: float) -> Iterator[dict]:
    """A row for each pair of models with a seed in common and scored on the same, by measure, in the table's order."""
    for (measure, data), part in table.groupby(["measure", "data"], sort=False):
        values = {
            model: each.pivot(index="seed", columns="unit", values="value")
            for model, each in part.groupby("model", sort=False)
        }
        sizes = {
            model: each.drop_duplicates("unit").set_index("unit")["size"].sort_index()
            for model, each in part.groupby("model", sort=False)
        }
        for against, model in combinations(values, 2):
            seeds = values[model].index.intersection(values[against].index)
            # Random windows of another length are other tokens of the same documents.
            if seeds.empty or not sizes[model].equals(sizes[against]):
                continue
            size_U = sizes[model].to_numpy()
            first_SU, second_SU = (values[name].loc[seeds].to_numpy() for name in (model, against))
            row = {"model": model, "against": against, "measure": measure, "data": data, "margin": margin}
            row["items"] = int(size_U.sum())
            right_or_wrong = len(seeds) == 1 and part["value"].isin([0, 1]).all() and (size_U == 1).all()
            if right_or_wrong:
                yield row | {"test": MCNEMAR} | described(paired_answers(first_SU[0], second_SU[0]), margin)
            else:
                yield row | {"test": T} | described(paired_difference(first_SU, second_SU, size_U), margin)


def described(found: Difference | PairedAnswers, margin: float) -> dict:
    low, high = found.interval()
    p_value, p_equivalence = found.p_value(), found.p_equivalence(margin)
    return {
        "difference": found.mean,
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "p_equivalence": p_equivalence,
        "verdict": verdict(found.mean, p_value, p_equivalence),
        "seeds": found.seeds,
        "n": found.units,
    }


def verdict(difference: float, p_value: float | None, p_equivalence: float | None) -> str:
    if p_value is None or p_equivalence is None:
        return "" if difference else "no difference at this sample size"
    words = [word for word, p in (("different", p_value), ("equivalent", p_equivalence)) if p < LEVEL]
    return ", ".join(words) or "no difference at this sample size"
