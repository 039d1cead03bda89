import gzip
import json

import pytest

from krakenlm.errors import InputError
from krakenlm.text import corpus

FILES = {
    "source": "files",
    "seed": 3,
    "validation_share": 0.25,
    "vocabulary": 300,
    "column": "text",
    "document": "line",
}


def read(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def texts(folder):
    return [document["text"] for split in ("train", "val") for document in read(folder, split)]


def write_files(tmp_path, settings=(), **contents):
    """A corpus out of files with the given contents, the suffix behind a double underscore."""
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / name.replace("__", "."))
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return corpus.write(tmp_path / "corpus", {**FILES, "files": [str(path) for path in paths], **dict(settings)})


def test_the_embedded_corpus_says_that_it_is_synthetic_and_how_probable_it_is(tmp_path):
    settings = {"source": "embedded", "seed": 0, "validation_share": 0.1, "words": 3000, "vocabulary": 512}
    summary = corpus.write(tmp_path, settings)
    assert summary == json.loads((tmp_path / "corpus.json").read_text())
    assert summary["data"] == "embedded (synthetic)"
    for split in ("train", "val"):
        documents = read(tmp_path, split)
        assert summary["documents"][split] == len(documents) > 0
        assert summary["nats"][split] == pytest.approx(sum(document["nats"] for document in documents))
        assert summary["words"][split] == sum(len(document["text"].split()) for document in documents)
        assert summary["bytes"][split] == sum(len(document["text"].encode()) for document in documents)
    share = summary["documents"]["val"] / sum(summary["documents"].values())
    assert share == pytest.approx(0.1, abs=0.01)


def test_equal_settings_give_equal_bytes(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(50))
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_files(tmp_path / name, story__txt=lines)
        contents.append([(tmp_path / name / "corpus" / f"{split}.jsonl").read_bytes() for split in ("train", "val")])
    assert contents[0] == contents[1]


def test_another_seed_holds_out_other_documents(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(50))
    held_out = []
    for seed in (1, 2):
        write_files(tmp_path, {"seed": seed}, story__txt=lines)
        held_out.append(read(tmp_path / "corpus", "val"))
    assert held_out[0] != held_out[1]


def test_files_of_every_kind_are_split_without_loss(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": pyarrow.array([f"row {i}" for i in range(4)], pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    summary = write_files(
        tmp_path,
        rows__parquet=(tmp_path / "rows.parquet").read_bytes(),
        more__jsonl__gz=gzip.compress(b'{"text": "packed"}\n'),
        objects__jsonl="".join(f'{{"id": {i}, "text": "object {i}"}}\n' for i in range(4)),
        lines__txt="line 0\n\n  \nline 1\r\nnaïve \u2028line 2\nline 3",
    )
    expected = [f"{kind} {i}" for kind in ("row", "object") for i in range(4)]
    expected += ["line 0", "line 1", "naïve \u2028line 2", "line 3", "packed"]
    assert sorted(texts(tmp_path / "corpus")) == sorted(expected)
    assert summary["documents"] == {"train": 9, "val": 4}
    assert summary["nats"] is None
    assert summary["data"] == "4-files"
    assert not any("nats" in document for document in read(tmp_path / "corpus", "train"))


def test_a_document_is_a_line_a_paragraph_or_a_file_as_asked(tmp_path):
    story = "one\ntwo\n\nthree\nfour\n"
    counts = {}
    for document in ("line", "paragraph", "file"):
        counts[document] = sum(
            write_files(tmp_path, {"document": document}, a__txt=story, b__txt=story)["documents"].values()
        )
    assert counts == {"line": 8, "paragraph": 4, "file": 2}
    assert read(tmp_path / "corpus", "val") == [{"text": story}]


def test_another_column_can_be_read_and_a_missing_one_is_named(tmp_path):
    objects = "".join(f'{{"body": "object {i}", "n": {i}}}\n' for i in range(4))
    write_files(tmp_path, {"column": "body"}, objects__jsonl=objects)
    assert sorted(texts(tmp_path / "corpus")) == [f"object {i}" for i in range(4)]
    with pytest.raises(InputError, match=r"text\.column: expected one of body, n .* found 'text'"):
        write_files(tmp_path, objects__jsonl=objects)
    with pytest.raises(InputError, match=r"text\.column: expected text in 'n'"):
        write_files(tmp_path, {"column": "n"}, objects__jsonl=objects)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a__txt": b"good\nbad \xff here\n"}, r"a\.txt: expected UTF-8, found byte 0xff at byte 9, line 2"),
        ({"a__txt": b"only one\n"}, r"text\.files: expected at least two documents, .* found 1"),
        ({"a__txt": b"\n \n\n"}, r"text\.files: expected at least two documents, .* found 0"),
        ({"a__jsonl": b'{"text": "x"}\n{"text":\n'}, r"a\.jsonl: expected a JSON object in line 2"),
        ({"a__jsonl": b'{"text": "\\ud800"}\n{"text": "x"}\n'}, r"a\.jsonl: .* surrogate"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_leaves_no_corpus(tmp_path, content, found):
    with pytest.raises(InputError, match=found) as refusal:
        write_files(tmp_path, **content)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "corpus" / "corpus.json").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: expected a file, found none"):
        corpus.write(tmp_path / "corpus", FILES | {"files": [str(tmp_path / "nowhere.txt")]})


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"text\.files: expected enough documents to hold out 0\.9"):
        write_files(tmp_path, {"validation_share": 0.9}, a__txt="one\ntwo\n")


def test_an_unknown_source_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(InputError, match=r"text\.source: expected one of embedded, files, hub, found 'web'"):
        corpus.write(tmp_path, FILES | {"source": "web"})
    with pytest.raises(InputError, match=r"text\.revision: expected a value for text\.source 'hub'"):
        corpus.write(tmp_path, {key: value for key, value in HUB.items() if key != "revision"})


HUB = {
    "source": "hub",
    "name": "someone/stories",
    "revision": "refs/convert/parquet",
    "column": "text",
    "seed": 2357,
    "validation_share": 0.1,
    "tokenizer": "openai-community/gpt2",
}


def serve(monkeypatch, splits):
    """Put `splits` in the hub's place; returns the calls that were made."""
    import datasets

    calls = []

    def load_dataset(name, **options):
        calls.append((name, options))
        if isinstance(splits, Exception):
            raise splits
        return datasets.DatasetDict({key: datasets.Dataset.from_dict(value) for key, value in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_data_set_is_read_at_its_revision_and_split_as_nanogpt_does(tmp_path, monkeypatch):
    import datasets

    stories = [f"story {i}" for i in range(40)]
    calls = serve(monkeypatch, {"train": {"text": stories, "id": list(range(40))}})
    summary = corpus.write(tmp_path, HUB)
    assert calls == [("someone/stories", {"revision": "refs/convert/parquet"})]
    expected = datasets.Dataset.from_dict({"text": stories}).train_test_split(test_size=0.1, seed=2357, shuffle=True)
    assert [d["text"] for d in read(tmp_path, "val")] == list(expected["test"]["text"])
    assert [d["text"] for d in read(tmp_path, "train")] == list(expected["train"]["text"])
    assert summary["data"] == "stories"


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (ConnectionError("no route\nto host"), r"text\.name: .* 'someone/stories' .*no route to host"),
        ({"test": {"text": ["a"]}}, r"text\.name: expected a data set with a split train, found test"),
        ({"train": {"body": ["a"]}}, r"text\.column: expected one of body"),
        ({"train": {"text": ["a"]}}, r"text\.name: expected enough documents"),
    ],
)
def test_a_hub_data_set_that_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch, splits, found):
    serve(monkeypatch, splits)
    with pytest.raises(InputError, match=found) as refusal:
        corpus.write(tmp_path, HUB)
    assert "\n" not in str(refusal.value)
