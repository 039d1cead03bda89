import numpy as np
import pandas
import pytest
from scipy import stats

from krakenlm.errors import InputError
from krakenlm.evaluation.comparison import compare


@pytest.fixture
def tables(tmp_path):
    """Losses of three models, two of them nearly equal, over 2 seeds and 200 documents; right answers of one seed."""
    draws = np.random.default_rng(0)
    base = draws.normal(4, 1, size=200)
    losses = [
        {"model": model, "protocol": "whole", "data": "text", "document": document, "seed": seed,
         "tokens": 10 + document % 7,
         "nats": (10 + document % 7) * (base[document] + shift + draws.normal(0, 0.02))}
        for model, shift in (("a", 0.0), ("b", 0.3), ("c", 0.001))
        for seed in (0, 1)
        for document in range(200)
    ]  # fmt: skip
    answers = [
        {"model": model, "task": "boolq", "metric": "acc", "data": "tasks", "example": example,
         "group": str(example), "seed": 0,
         "value": float((example + shift) % 10 < 6)}
        for model, shift in (("a", 0), ("b", 1))
        for example in range(100)
    ]  # fmt: skip
    pandas.DataFrame(losses).to_parquet(tmp_path / "perplexity.parquet")
    pandas.DataFrame(answers).to_parquet(tmp_path / "superglue.parquet")
    return tmp_path


def rows_of(tables, **margins):
    rows = compare(tables / "perplexity.parquet", tables / "superglue.parquet", tables / "out.csv", **margins)
    return {(row["model"], row["against"], row["measure"].split(",")[0]): row for row in rows}


def test_a_difference_an_equivalence_and_neither_are_told_apart(tables):
    rows = rows_of(tables)
    far, near, scored = rows["b", "a", "loss"], rows["c", "a", "loss"], rows["b", "a", "boolq"]
    assert (far["verdict"], near["verdict"]) == ("different", "equivalent")
    assert far["ci_low"] < 0.3 < far["ci_high"]
    assert scored["verdict"] == "no difference at this sample size"
    assert (scored["test"], scored["p_value"]) == ("exact McNemar", 1.0)
    assert (far["test"], far["seeds"], far["n"]) == ("t", 2, 200)
    assert rows_of(tables, loss_margin=1e-5)["c", "a", "loss"]["verdict"] != "equivalent"


def test_multirc_is_compared_by_its_corrected_labels_alone(tables):
    answers = pandas.read_parquet(tables / "superglue.parquet")
    parts = [answers.assign(task="multirc", metric="acc"), answers.assign(task="multirc", metric="acc (corrected)")]
    pandas.concat(parts).to_parquet(tables / "superglue.parquet")
    compare(tables / "perplexity.parquet", tables / "superglue.parquet", tables / "out.csv")
    measures = set(pandas.read_csv(tables / "out.csv")["measure"])
    assert {name for name in measures if "multirc" in name} == {"multirc, acc (corrected)"}


def test_models_scored_on_other_tokens_of_the_documents_are_not_compared(tables):
    losses = pandas.read_parquet(tables / "perplexity.parquet")
    losses.loc[losses["model"] == "b", "tokens"] += 1
    losses.to_parquet(tables / "perplexity.parquet")
    assert {key for key in rows_of(tables) if key[2] == "loss"} == {("c", "a", "loss")}


def test_equal_answers_to_all_of_a_few_examples_are_not_called_equivalent(tables):
    answers = pandas.read_parquet(tables / "superglue.parquet")
    answers.assign(value=1.0)[answers["example"] < 6].to_parquet(tables / "superglue.parquet")
    row = rows_of(tables)["b", "a", "boolq"]
    assert (row["difference"], row["p_value"]) == (0, 1)
    assert row["verdict"] == "no difference at this sample size"


def answered(tables, examples, first_right, seeds=(0,)):
    """Two models of which `a` has all wrong, `b` the first ones right."""
    rows = [
        {"model": model, "task": "boolq", "metric": "acc", "data": "tasks", "example": example, "group": str(example),
         "seed": seed,
         "value": float(model == "b" and example < first_right)}
        for model in ("a", "b")
        for seed in seeds
        for example in range(examples)
    ]  # fmt: skip
    pandas.DataFrame(rows).to_parquet(tables / "superglue.parquet")
    return rows_of(tables)["b", "a", "boolq"]


def test_a_few_answers_are_no_difference_and_no_equivalence(tables):
    four_of_wsc, two_of_rte = answered(tables, 104, 4), answered(tables, 277, 2)
    assert four_of_wsc["p_value"] == pytest.approx(2 / 2**4)
    assert four_of_wsc["verdict"] == "no difference at this sample size"
    assert two_of_rte["verdict"] == "no difference at this sample size"
    assert answered(tables, 104, 6)["verdict"] == "different"
    assert answered(tables, 2770, 2)["verdict"] == "equivalent"


def test_answers_averaged_over_several_seeds_are_compared_by_t(tables):
    row = answered(tables, 104, 30, seeds=(0, 1))
    assert (row["test"], row["seeds"]) == ("t", 2)


def test_answers_about_one_paragraph_are_one_unit(tables):
    draws = np.random.default_rng(5)
    # Five answers a paragraph, all of which a model has right or wrong together.
    right = {model: draws.integers(0, 2, 40) for model in ("a", "b")}
    rows = [
        {"model": model, "task": "multirc", "metric": "acc (corrected)", "data": "tasks", "example": example,
         "group": f"paragraph {example // 5}", "seed": 0, "value": float(right[model][example // 5])}
        for model in ("a", "b")
        for example in range(200)
    ]  # fmt: skip
    pandas.DataFrame(rows).to_parquet(tables / "superglue.parquet")
    row = rows_of(tables)["b", "a", "multirc"]
    expected = stats.ttest_rel(right["b"], right["a"])
    assert (row["test"], row["n"], row["items"]) == ("t", 40, 200)
    assert row["p_value"] == pytest.approx(expected.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_missing_tables_columns_and_margins_are_named(tables):
    with pytest.raises(InputError, match="loss_margin: expected a number above 0, found 0"):
        rows_of(tables, loss_margin=0)
    pandas.DataFrame({"model": ["a"]}).to_parquet(tables / "superglue.parquet")
    with pytest.raises(InputError, match=r"superglue\.parquet: expected the columns .* found no task"):
        rows_of(tables)
    (tables / "perplexity.parquet").unlink()
    with pytest.raises(InputError, match=r"perplexity\.parquet: expected a parquet table"):
        rows_of(tables)
