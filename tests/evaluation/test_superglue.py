import json

import datasets
import lm_eval.utils
import pandas
import pytest
from lm_eval.api.model import LM

from krakenlm.errors import InputError
from krakenlm.evaluation import superglue

DESIGNED = ["model", "task", "metric", "value", "stderr", "n", "chance", "data", "seed", "scale", "run"]
PASSAGE = "Ann and Ben went to Oslo. Ann bought a hat."


def example(task, number):
    """Example `number` of a task; labels go round."""
    label = number % 2
    hat = f"hat {number}"
    return {
        "boolq": {"question": f"did Ann buy a {hat}", "passage": PASSAGE, "label": label},
        "cb": {"premise": PASSAGE, "hypothesis": f"Ann has a {hat}", "label": number % 3},
        "copa": {
            "premise": "Ann was cold.",
            "choice1": f"She wore a {hat}.",
            "choice2": f"She ate {hat}.",
            "question": ("cause", "effect")[number // 2 % 2],
            "label": label,
        },
        "multirc": {"paragraph": PASSAGE, "question": "What did Ann buy?", "answer": f"a {hat}", "label": label},
        "record": {
            "passage": f"{PASSAGE}\n@highlight\nBen slept",
            "query": f"@placeholder bought {hat}.",
            "entities": ["Ann", "Ben", "Oslo", "Rex"],
            "answers": [("Ann", "Ben")[label]],
        },
        "rte": {"premise": PASSAGE, "hypothesis": f"Ann has a {hat}.", "label": label},
        "wic": {
            "word": "bat",
            "sentence1": "Ann saw a bat.",
            "sentence2": f"Ben fixed a bat {number}.",
            "start1": 10,
            "end1": 13,
            "start2": 12,
            "end2": 15,
            "label": label,
        },
        "wsc": {
            "text": f"Ann thanked Ben because he had brought a {hat}.",
            "span1_index": 2 * (1 - label),
            "span1_text": ("Ann", "Ben")[label],
            "span2_index": 4,
            "span2_text": "he",
            "label": label,
        },
    }[task]


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    for task in superglue.TASKS:
        rows = [json.dumps(example(task, number)) for number in range(8)]
        (folder / f"{task}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "tasks.json").write_text(json.dumps({"data": "questions"}))
    return folder


def run(model, tasks, out, **changes):
    return superglue.evaluate(model, tasks, out, name="small", seed=3, scale="tiny", run="here", threads=1, **changes)


class Knowing(LM):
    """Prefers the right answer, by each task's own labels; of MultiRC, as its labels are meant."""

    def __init__(self, model, device, comm):
        super().__init__()

    def loglikelihood(self, requests):
        return [(float(self.is_right(request)), False) for request in requests]

    def is_right(self, request):
        task, doc, answer = request.task_name, request.doc, request.args[1].strip()
        if task == "record":
            return doc["query"].replace("@placeholder", doc["answers"][0]) in answer
        if task == "copa":
            chosen = doc[("choice1", "choice2")[doc["label"]]]
            return answer == chosen[0].lower() + chosen[1:]
        words = {"cb": ("True", "False", "Neither"), "sglue_rte": ("True", "False")}.get(task, ("no", "yes"))
        return answer.endswith(words[doc["label"]])

    def loglikelihood_rolling(self, requests):
        raise AssertionError("no SuperGLUE task asks for this")

    def generate_until(self, requests):
        raise AssertionError("no SuperGLUE task asks for this")


def test_a_model_that_knows_the_answers_gets_all_but_lm_evals_multirc(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(superglue, "KrakenLM", Knowing)
    rows = run(tmp_path, tasks, tmp_path / "out.csv")
    values = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert values.pop(("multirc", "acc")) == 0
    assert set(values.values()) == {1.0}
    assert set(values) == {(task, "acc") for task in ("boolq", "cb", "copa", "rte", "wic", "wsc")} | {
        ("cb", "f1"),
        ("multirc", "acc (corrected)"),
        ("record", "f1"),
        ("record", "em"),
    }
    assert {row["task"] for row in rows if row["reported"]} == set(superglue.TASKS)


def test_a_template_is_compiled_once_in_a_run_and_lm_eval_is_afterwards_as_it_was(tasks, tmp_path, monkeypatch):
    compiled, compile_template = [], lm_eval.utils.env.from_string

    def counted(template):
        compiled.append(template)
        return compile_template(template)

    monkeypatch.setattr(superglue, "KrakenLM", Knowing)
    monkeypatch.setattr(lm_eval.utils.env, "from_string", counted)
    run(tmp_path, tasks, tmp_path / "out.csv")
    assert compiled
    assert len(compiled) == len(set(compiled))
    assert lm_eval.utils.env.from_string is counted


def test_a_real_model_gets_a_table_that_a_second_run_repeats(model, tasks, tmp_path):
    rows = run(model, tasks, tmp_path / "one.csv")
    run(model, tasks, tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table = pandas.read_csv(tmp_path / "one.csv")
    assert list(table.columns[: len(DESIGNED)]) == DESIGNED
    assert list(table.columns[len(DESIGNED) :]) == ["p_value", "task_version", "reported"]
    assert set(table["n"]) == {8}
    assert set(table["data"]) == {"questions"}
    assert table["value"].between(0, 1).all()
    assert table.loc[table["metric"] == "f1", "p_value"].isna().all()
    by_metric = {row["metric"]: row["value"] for row in rows if row["task"] == "multirc"}
    assert by_metric["acc"] + by_metric["acc (corrected)"] == pytest.approx(1)
    assert {path.suffix for path in tasks.iterdir() if path.name != "tasks.json"} == {".jsonl"}


def test_predictions_of_every_example_stand_beside_the_table_and_average_to_it(model, tasks, tmp_path):
    rows = run(model, tasks, tmp_path / "out.csv")
    table = pandas.read_parquet(tmp_path / "out.parquet")
    means = table.groupby(["task", "metric"])["value"].mean().to_dict()
    scores = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert set(scores) - set(means) == {("cb", "f1")}
    assert all(scores[key] == pytest.approx(mean) for key, mean in means.items())
    assert (table.groupby(["task", "metric"]).size() == 8).all()
    assert all(nats[chosen] == max(nats) for nats, chosen in zip(table["nats"], table["predicted"], strict=True))


class Undecided(Knowing):
    def is_right(self, request):
        return False


def test_of_equally_likely_answers_the_first_is_taken_in_scores_and_predictions(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(superglue, "KrakenLM", Undecided)
    scores = {(row["task"], row["metric"]): row["value"] for row in run(tmp_path, tasks, tmp_path / "out.csv")}
    table = pandas.read_parquet(tmp_path / "out.parquet")
    assert set(table["predicted"]) == {0}
    first = table["label"].isin(["0", '["Ann"]'])  # what is right, where that is the first
    kept = table["metric"] != superglue.CORRECTED
    assert table["value"][kept].tolist() == first[kept].astype(float).tolist()
    assert scores["cb", "acc"] == 3 / 8
    assert {scores[task, "acc"] for task in ("boolq", "copa", "multirc", "rte", "wic", "wsc")} == {0.5}
    assert scores["record", "em"] == scores["record", "f1"] == 0.5


def test_scores_of_all_examples_follow_from_the_predictions_and_labels_in_the_parquet(model, tasks, tmp_path):
    scores = {(row["task"], row["metric"]): row["value"] for row in run(model, tasks, tmp_path / "out.csv")}
    table = pandas.read_parquet(tmp_path / "out.parquet")
    rows = table[table["task"] == "cb"].drop_duplicates("example")
    right, chosen = rows["label"].map(json.loads), rows["predicted"]
    assert right.tolist() == [number % 3 for number in range(8)]
    hits = [((right == label) & (chosen == label)).sum() for label in range(3)]
    asked = [(right == label).sum() + (chosen == label).sum() for label in range(3)]
    assert scores["cb", "acc"] == pytest.approx(sum(hits) / 8)
    assert scores["cb", "f1"] == pytest.approx(sum(2 * h / a for h, a in zip(hits, asked, strict=True)) / 3)
    answers = table[table["task"] == "record"].drop_duplicates("example")["label"].map(json.loads)
    assert answers.tolist() == [[("Ann", "Ben")[number % 2]] for number in range(8)]


def test_examples_about_one_paragraph_or_passage_are_one_group(tasks, tmp_path, monkeypatch):
    for task, shared in (("multirc", "paragraph"), ("record", "passage")):
        rows = [
            example(task, number) | {shared: f"Ann and Ben went to Oslo, day {number // 4}."} for number in range(8)
        ]
        (tasks / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(superglue, "KrakenLM", Knowing)
    run(tmp_path, tasks, tmp_path / "out.csv")
    table = pandas.read_parquet(tmp_path / "out.parquet")
    groups = table.drop_duplicates(["task", "example"]).groupby("task")["group"].agg(list)
    assert all(len(set(each)) == (2 if task in ("multirc", "record") else 8) for task, each in groups.items())
    assert all(len(set(groups[task][:4])) == len(set(groups[task][4:])) == 1 for task in ("multirc", "record"))


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(model, tasks, tmp_path):
    run(model, tasks, tmp_path / "one.csv")
    run(model, tasks, tmp_path / "two.csv", ranks=2)
    for suffix in (".csv", ".parquet"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_chance_is_the_better_of_a_uniform_and_a_constant_guess(model, tasks, tmp_path):
    rows = {(row["task"], row["metric"]): row for row in run(model, tasks, tmp_path / "out.csv")}
    # Labels 0 1 2 0 1 2 0 1: the most frequent has 3 of 8.
    assert rows["cb", "acc"]["chance"] == 3 / 8
    shares = (3 / 8, 3 / 8, 2 / 8)
    uniform = sum(2 * share / 3 / (share + 1 / 3) for share in shares) / 3
    assert rows["cb", "f1"]["chance"] == pytest.approx(uniform)
    assert rows["boolq", "acc"]["chance"] == 1 / 2
    assert rows["record", "em"]["chance"] == pytest.approx(1 / 4)
    assert rows["record", "f1"]["chance"] == pytest.approx(1 / 4)


def test_p_value_is_the_binomial_tail():
    assert superglue.p_value(8, 8, 0.5) == pytest.approx(1 / 256)
    assert superglue.p_value(7, 8, 0.5) == pytest.approx(9 / 256)
    assert superglue.p_value(0, 8, 0.5) == 1


def test_label_of_the_data_is_the_folders_own(tasks):
    (tasks / "tasks.json").write_text(json.dumps({"data": "embedded (synthetic)"}))
    assert superglue.data_label(tasks) == "embedded (synthetic)"
    assert superglue.data_label(None).startswith("aps/super_glue@")


@pytest.mark.parametrize("content", [None, "[1]", '{"data": 3}', "{}"])
def test_tasks_without_a_label_are_refused_before_anything_is_scored(tasks, tmp_path, monkeypatch, content):
    (tasks / "tasks.json").unlink() if content is None else (tasks / "tasks.json").write_text(content)
    monkeypatch.setattr(superglue, "KrakenLM", None)
    with pytest.raises(InputError, match=r"tasks\.json: expected"):
        run(tmp_path, tasks, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("boolq", {"label": 2}, "expected label 0 to 1, found 2"),
        ("cb", {"premise": None}, "expected premise of type str for cb, found None"),
        ("copa", {"question": "why"}, "expected question cause or effect, found 'why'"),
        ("record", {"answers": ["Tom"]}, "expected answers out of entities"),
        ("copa", {"choice2": " "}, "expected a text for choice1 and choice2, found 'She wore a hat 0.' and ' '"),
        ("record", {"entities": ["Ann", 3]}, r"expected texts in entities \['Ann', 3\]"),
        ("record", {"entities": ["Ann", ""]}, r"expected texts in entities \['Ann', ''\]"),
        ("record", {"answers": ["Ann", []]}, r"expected texts in .* and answers \['Ann', \[\]\]"),
        ("record", {"query": "Ann slept."}, "expected @placeholder in query"),
        ("wic", {"start1": 40, "end1": 44}, "expected a word at start1 to end1"),
        ("wsc", {"span2_index": 12}, "expected 'he' as word 12 of text"),
        ("wsc", {"span2_index": -5}, "expected 'he' as word -5 of text"),
        ("wsc", {"span2_text": ""}, "expected '' as word 4 of text"),
    ],
)
def test_a_row_that_does_not_fit_its_task_is_refused_with_file_and_line(tasks, task, change, message):
    path = tasks / f"{task}.jsonl"
    with open(path, "a") as file:
        file.write(json.dumps(example(task, 0) | change) + "\n")
    with pytest.raises(InputError, match=f"{task}.jsonl line 9: {message}"):
        superglue.load_tasks(tasks)


def test_a_pronoun_that_is_not_where_its_index_says_is_scored_as_it_is_and_said(tasks, capsys):
    path = tasks / "wsc.jsonl"
    superglue.load_tasks(tasks)
    assert "is not word" not in capsys.readouterr().err
    path.write_text(path.read_text() + json.dumps(example("wsc", 0) | {"span2_index": 3}) + "\n")
    superglue.load_tasks(tasks)
    assert "wsc.jsonl line 9: 'he' is not word 3 of its text" in capsys.readouterr().err


def test_a_missing_task_is_named(tasks):
    (tasks / "rte.jsonl").unlink()
    with pytest.raises(InputError, match=r"rte\.jsonl: expected examples of rte, found no file"):
        superglue.load_tasks(tasks)


def test_a_task_that_cannot_be_read_is_named_and_not_taken_for_the_hubs(tasks):
    (tasks / "rte.jsonl").unlink()
    (tasks / "rte.jsonl").mkdir()
    with pytest.raises(InputError, match=r"rte\.jsonl: expected a file to read, found none \(Is a directory\)"):
        superglue.load_tasks(tasks)


def test_the_hubs_copy_is_taken_at_its_revision_and_scored_as_local_tasks_are(tasks, tmp_path, monkeypatch):
    asked = {}

    def load_dataset(path, name, **settings):
        asked[name] = path, settings["revision"]
        key = name.removesuffix(".fixed")
        return datasets.DatasetDict(superglue.local_rows(str(tasks / f"{key}.jsonl"), key))

    monkeypatch.setattr(superglue, "KrakenLM", Knowing)
    expected = run(tmp_path / "model", tasks, tmp_path / "local.csv")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = run(tmp_path / "model", None, tmp_path / "hub.csv")
    names = {"boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc.fixed"}
    assert asked == dict.fromkeys(names, (superglue.HUB, superglue.HUB_REVISION))
    assert {row["data"] for row in found} == {"aps/super_glue@3de24cf"}
    assert [row | {"data": ""} for row in found] == [row | {"data": ""} for row in expected]


def test_without_a_network_the_hubs_copy_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^evaluation\.superglue: expected aps/super_glue from the hub, could not"):
        superglue.load_tasks(None)
