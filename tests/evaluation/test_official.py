import json
from pathlib import Path

import pytest
import yaml

from krakenlm.errors import InputError
from krakenlm.evaluation import official, superglue
from krakenlm.files import write_text
from krakenlm.text import embedded

LABELS = {"not_entailment": 1, "entailment": 0, "contradiction": 1, "neutral": 2, True: 1, False: 0}


def lines(folder, task):
    return [json.loads(line) for line in (folder / task / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def prompts_and_answers(folder):
    """Of each task and line of the download: prompt, choices, number of the right one, in lm-eval's words by hand."""
    for row in lines(folder, "BoolQ"):
        prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        yield "boolq", prompt, ["no", "yes"], LABELS[row["label"]]
    for row in lines(folder, "CB"):
        prompt = f"{row['premise']}\nQuestion: {row['hypothesis']}. True, False, or Neither?\nAnswer:"
        yield "cb", prompt, ["True", "False", "Neither"], LABELS[row["label"]]
    for row in lines(folder, "COPA"):
        word = {"cause": "because", "effect": "therefore"}[row["question"]]
        choices = [f" {choice[0].lower()}{choice[1:]}" for choice in (row["choice1"], row["choice2"])]
        yield "copa", f"{row['premise'].strip()[:-1]} {word}", choices, row["label"]
    for row in lines(folder, "MultiRC"):
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                prompt = f"{row['passage']['text']}\nQuestion: {question['question']}\nAnswer:"
                choices = [f"{answer['text']}\nIs the answer correct? {word}" for word in ("yes", "no")]
                yield "multirc", prompt, choices, answer["label"]
    for row in lines(folder, "ReCoRD"):
        text, *highlights = row["passage"]["text"].strip().split("\n@highlight\n")
        prompt = text + "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
        spans = {row["passage"]["text"][span["start"] : span["end"] + 1] for span in row["passage"]["entities"]}
        for query in row["qas"]:
            choices = [f"  - {query['query'].replace('@placeholder', entity)}" for entity in sorted(spans)]
            first = min(answer["text"] for answer in query["answers"])
            yield "record", prompt, choices, choices.index(f"  - {query['query'].replace('@placeholder', first)}")
    for row in lines(folder, "RTE"):
        prompt = f"{row['premise']}\nQuestion: {row['hypothesis']} True or False?\nAnswer:"
        yield "rte", prompt, ["True", "False"], LABELS[row["label"]]
    for row in lines(folder, "WiC"):
        word = row["sentence1"][row["start1"] : row["end1"]]
        prompt = (
            f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}\nQuestion: Is the word '{word}' used in "
            "the same way in the two sentences above?\nAnswer:"
        )
        yield "wic", prompt, ["no", "yes"], LABELS[row["label"]]


def rendered(task, doc):
    """Prompt, choices and right choice's number as lm-eval has them."""
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    return task.doc_to_text(doc), choices, choices.index(target) if isinstance(target, str) else target


@pytest.fixture(scope="module")
def converted(download, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    official.convert(download, "train", out)
    return out


@pytest.fixture(scope="module")
def loaded(converted):
    return superglue.load_tasks(converted)["tasks"]


def test_every_line_becomes_the_prompt_choices_and_answer_that_lm_eval_words(download, loaded):
    expected = {}
    for task, *rest in prompts_and_answers(download):
        expected.setdefault(task, []).append(tuple(rest))
    for task, wanted in expected.items():
        lm_eval_task = loaded[superglue.TASKS[task].lm_eval_name]
        assert [rendered(lm_eval_task, doc) for doc in lm_eval_task.validation_docs()] == wanted, task


def test_every_pronoun_of_wsc_is_marked_in_its_own_place(download, loaded):
    for row, doc in zip(lines(download, "WSC"), loaded["wsc"].validation_docs(), strict=True):
        target = row["target"]
        assert row["text"].split()[target["span2_index"]].lower().startswith(target["span2_text"].lower().rstrip("."))
        prompt, choices, right = rendered(loaded["wsc"], doc)
        before = " ".join(row["text"].split()[: target["span2_index"]])
        marked = prompt.removeprefix("Passage: ").split("\n")[0]
        # lm-eval joins punctuation to words again; without spaces nothing else has changed.
        assert marked.replace(" ", "") == (
            f"{before}*{target['span2_text']}*{row['text'][len(before) + 1 + len(target['span2_text']) :]}"
        ).replace(" ", "")
        assert f'the pronoun "*{target["span2_text"]}*" refer to "*{doc["span1_text"]}*"?' in prompt
        assert doc["span1_text"].lower() == target["span1_text"].lower().rstrip(".")
        assert (choices, right) == (["no", "yes"], LABELS[row["label"]])


def test_the_words_that_an_official_example_runs_together_have_the_hubs_index():
    target = {"span1_index": 0, "span1_text": "Ann", "span2_index": 4, "span2_text": "theyscold"}
    [row] = official.wsc({"text": "Ann and Ben hide when they scold .", "target": target, "label": True})
    assert row["span2_index"] == 10
    [row] = official.wsc({"text": "Ann knows theyscold .", "target": target | {"span2_index": 2}, "label": True})
    assert row["span2_index"] == 2


def test_every_field_arrives_as_it_was(download, converted):
    kept = {
        "BoolQ": ("question", "passage"),
        "CB": ("premise", "hypothesis"),
        "COPA": ("premise", "choice1", "choice2", "question", "label"),
        "RTE": ("premise", "hypothesis"),
        "WiC": ("sentence1", "sentence2", "start1", "end1"),
        "WSC": ("text",),
    }
    for name, fields in kept.items():
        rows = [json.loads(line) for line in (converted / f"{name.lower()}.jsonl").read_text("utf-8").splitlines()]
        given = lines(download, name)
        assert [[row[field] for field in fields] for row in rows] == [[row[f] for f in fields] for row in given]
    records = [json.loads(line) for line in (converted / "record.jsonl").read_text("utf-8").splitlines()]
    for row, given in zip(records, lines(download, "ReCoRD"), strict=True):
        assert (row["passage"], row["query"]) == (given["passage"]["text"], given["qas"][0]["query"])
        assert set(row["answers"]) == {answer["text"] for answer in given["qas"][0]["answers"]} <= set(row["entities"])


class Loader(yaml.SafeLoader):
    """Reads lm-eval's task files; a function is left as the name of its file and its own."""


Loader.add_constructor("!function", lambda loader, node: ("function", loader.construct_scalar(node)))


def named(value, key):
    """A function of lm-eval's task as `Loader` has it."""
    if not callable(value):
        return value
    path = Path(value.__code__.co_filename)
    assert path.parent == superglue.LM_EVAL_TASKS / key
    return "function", f"{path.stem}.{value.__name__}"


@pytest.mark.parametrize("key", superglue.TASKS)
def test_all_but_the_source_of_the_data_is_as_lm_eval_has_it(loaded, key):
    original = yaml.load((superglue.LM_EVAL_TASKS / key / "default.yaml").read_text(), Loader)
    found = vars(loaded[superglue.TASKS[key].lm_eval_name].config)
    for name in ("dataset_path", "dataset_name", "output_type", "validation_split"):
        assert found[name] == original[name]
    assert found["metadata"]["version"] == original["metadata"]["version"]
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs", "process_results"):
        assert named(found[name], key) == original.get(name)
    metrics = [{name: named(value, key) for name, value in metric.items()} for metric in found["metric_list"]]
    assert metrics == original["metric_list"]


def test_of_a_function_its_file_and_its_name_are_compared(loaded):
    assert named(loaded["copa"].config.doc_to_choice, "copa") == ("function", "utils.doc_to_choice")
    with pytest.raises(AssertionError):
        named(loaded["copa"].config.doc_to_choice, "record")


LINES = {
    "BoolQ": {"question": "is it", "passage": "It is.", "label": True},
    "CB": {"premise": "It is.", "hypothesis": "it is", "label": "neutral"},
    "COPA": {"premise": "It is.", "choice1": "A", "choice2": "B", "question": "cause", "label": 0},
    "MultiRC": {
        "passage": {"text": "It is.", "questions": [{"question": "Q", "answers": [{"text": "A", "label": 1}]}]}
    },
    "ReCoRD": {
        "passage": {"text": "Ann ran.", "entities": [{"start": 0, "end": 2}]},
        "qas": [{"query": "@placeholder ran", "answers": [{"text": "Ann", "start": 0, "end": 2}]}],
    },
    "RTE": {"premise": "It is.", "hypothesis": "It is.", "label": "entailment"},
    "WiC": {"word": "is", "sentence1": "It is.", "sentence2": "is it", "start1": 3, "end1": 5, "label": False},
    "WSC": {
        "text": "The cat ran because it was late",
        "target": {"span1_text": "the cat.", "span1_index": 0, "span2_text": "it", "span2_index": 4},
        "label": True,
    },
}


@pytest.fixture
def small(tmp_path):
    """One line of each task, as two splits."""
    for name, line in LINES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.jsonl").write_text(json.dumps(line) + "\n")
        bare = json.loads(json.dumps(line).replace('"label": 1', '"idx": 1'))
        bare.pop("label", None)
        if name == "ReCoRD":
            bare["qas"][0].pop("answers")
        (tmp_path / name / "test.jsonl").write_text(json.dumps(bare) + "\n")
    return tmp_path


def test_labels_spans_and_nested_examples_become_the_hubs_schema(small, tmp_path):
    official.convert(small, "val", tmp_path / "out")
    rows = {task: json.loads((tmp_path / "out" / f"{task}.jsonl").read_text()) for task in superglue.TASKS}
    labels = {task: row["label"] for task, row in rows.items() if "label" in row}
    assert labels == {"boolq": 1, "cb": 2, "copa": 0, "multirc": 1, "rte": 0, "wic": 0, "wsc": 1}
    assert rows["multirc"] == {"paragraph": "It is.", "question": "Q", "answer": "A", "label": 1}
    assert (rows["record"]["entities"], rows["record"]["answers"]) == (["Ann"], ["Ann"])
    # wsc.fixed of the hub: the text's capital is there, and a point that it has not is gone.
    assert rows["wsc"]["span1_text"] == "The cat"
    assert superglue.data_label(tmp_path / "out") == "SuperGLUE, official val"


@pytest.mark.parametrize("name", LINES)
def test_a_test_split_is_refused_because_it_has_no_labels(small, tmp_path, name):
    task = next(task for task, folder in official.FOLDERS.items() if folder == name)
    with pytest.raises(InputError, match=rf"{name}/test\.jsonl line 1: expected .* keeps those of its test files"):
        list(official.read_task(small, task, "test"))


def test_a_missing_task_is_named_and_nothing_is_written(small, tmp_path):
    (small / "WiC" / "val.jsonl").unlink()
    with pytest.raises(InputError, match=r"WiC/val\.jsonl: expected WiC's examples of the official download"):
        official.convert(small, "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", ["official", "embedded"])
def test_a_conversion_that_is_cut_off_leaves_no_tasks_of_two_kinds_to_read(small, tmp_path, monkeypatch, write):
    out, module = tmp_path / "out", {"official": official, "embedded": embedded}[write]
    official.convert(small, "val", out)
    written = []

    def cut_off(path, text):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_text(path, text)

    monkeypatch.setattr(module, "write_text", cut_off)
    again = {"official": lambda: official.convert(small, "val", out)}
    again["embedded"] = lambda: embedded.write_tasks(out, seed=1, examples=2)
    with pytest.raises(KeyboardInterrupt):
        again[write]()
    with pytest.raises(InputError, match=r"tasks\.json: expected a JSON file, found none"):
        superglue.data_label(out)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("BoolQ", '{"question": "is it", "passage"', r"expected a JSON object, found '\{\"question\": \"is it\""),
        ("CB", json.dumps(LINES["CB"] | {"label": "maybe"}), "expected label entailment or contradiction or neutral"),
        ("BoolQ", json.dumps(LINES["BoolQ"] | {"label": 1}), "expected label False or True, found 1"),
        ("MultiRC", '{"idx": 1}', r"expected an example of MultiRC.*KeyError: 'passage'"),
        ("COPA", "[1]", "expected an example of COPA"),
        ("RTE", json.dumps({"premise": "It is.", "label": "entailment"}), "expected hypothesis of type str for rte"),
    ],
)
def test_a_malformed_line_is_named_with_its_number(small, tmp_path, name, line, message):
    with open(small / name / "val.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"{name}/val\.jsonl line 2: {message}"):
        official.convert(small, "val", tmp_path / "out")
