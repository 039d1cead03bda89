import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from krakenlm.errors import InputError
from krakenlm.text import corpus, duplicates, readers
from krakenlm.text.documents import Corpus

FILES = {
    "source": "files",
    "seed": 3,
    "validation_share": 0.25,
    "vocabulary": 300,
    "column": "text",
    "document": "line",
}


def texts(folder, split):
    """The documents of a split, in its order."""
    documents = list(Corpus(folder).documents())
    return [documents[place] for place in Corpus(folder).order(split)]


def all_texts(folder):
    return texts(folder, "train") + texts(folder, "val")


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
        written = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert summary["documents"][split] == len(written) > 0
        assert summary["nats"][split] == pytest.approx(sum(document["nats"] for document in written))
        assert texts(tmp_path, split) == [document["text"] for document in written]
        assert Corpus(tmp_path).bytes(split) == sum(len(document["text"].encode()) for document in written)
    share = summary["documents"]["val"] / sum(summary["documents"].values())
    assert share == pytest.approx(0.1, abs=0.01)


def test_a_corpus_can_be_read_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    corpus.write("corpus", {**FILES, "files": ["lines.txt"]})
    monkeypatch.chdir("/")
    assert sorted(all_texts(tmp_path / "corpus")) == ["one", "two"]


@pytest.mark.parametrize(("seed", "share", "count"), [(2357, 0.0005, 9000), (2357, 0.1, 40), (3, 0.25, 9)])
def test_the_split_is_the_one_that_the_authors_call_gives(tmp_path, seed, share, count):
    import datasets

    lines = [f"line {number}" for number in range(count)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    settings = FILES | {"seed": seed, "validation_share": share, "files": [str(tmp_path / "lines.txt")]}
    corpus.write(tmp_path / "corpus", settings)
    theirs = datasets.Dataset.from_dict({"text": lines}).train_test_split(test_size=share, seed=seed, shuffle=True)
    assert texts(tmp_path / "corpus", "val") == theirs["test"]["text"]
    assert texts(tmp_path / "corpus", "train") == theirs["train"]["text"]


def test_equal_settings_give_equal_bytes(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(50))
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_files(tmp_path / name, story__txt=lines)
        contents.append([(tmp_path / name / "corpus" / part).read_bytes() for part in ("index.bin", "order.npy")])
    assert contents[0] == contents[1]


def test_another_seed_holds_out_other_documents(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(50))
    held_out = []
    for seed in (1, 2):
        write_files(tmp_path, {"seed": seed}, story__txt=lines)
        held_out.append(texts(tmp_path / "corpus", "val"))
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
    assert sorted(all_texts(tmp_path / "corpus")) == sorted(expected)
    assert summary["documents"] == {"train": 9, "val": 4}
    assert summary["nats"] is None
    assert summary["data"] == "4-files"


def test_a_document_is_a_line_a_paragraph_or_a_file_as_asked(tmp_path):
    story = "one\ntwo\n\nthree\nfour\n"
    counts = {}
    for document in ("line", "paragraph", "file"):
        counts[document] = sum(
            write_files(tmp_path, {"document": document}, a__txt=story, b__txt=story)["documents"].values()
        )
    assert counts == {"line": 8, "paragraph": 4, "file": 2}
    assert all_texts(tmp_path / "corpus") == [story, story]


def test_another_column_can_be_read_and_a_missing_one_is_named(tmp_path):
    objects = "".join(f'{{"body": "object {i}", "n": {i}}}\n' for i in range(4))
    write_files(tmp_path, {"column": "body"}, objects__jsonl=objects)
    assert sorted(all_texts(tmp_path / "corpus")) == [f"object {i}" for i in range(4)]
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
    with pytest.raises(InputError, match=r"text\.files\[0\]: .*found no file at .*nowhere\.txt"):
        corpus.write(tmp_path / "corpus", FILES | {"files": [str(tmp_path / "nowhere.txt")]})


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"text\.files: expected enough documents to hold out 0\.9"):
        write_files(tmp_path, {"validation_share": 0.9}, a__txt="one\ntwo\n")


def test_an_unknown_source_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(InputError, match=r"text\.source: expected one of embedded, files, hub, bin, found 'web'"):
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one data set of two files; `hub.failures` are raised first, `hub.calls` says what was asked for."""
    import datasets
    import huggingface_hub

    state = SimpleNamespace(failures=[], calls=[], waits=[], folder=tmp_path / "hub", files={})
    state.folder.mkdir()
    for number in range(2):
        lines = "".join(json.dumps({"text": f"story {number} {line}"}) + "\n" for line in range(20))
        (state.folder / f"{number}.jsonl").write_text(lines)
    state.files = {"train": [f"hf://datasets/someone/stories@c0ffee/{number}.jsonl" for number in range(2)]}

    def answer(call, result):
        state.calls.append(call)
        if state.failures:
            raise state.failures.pop(0)
        return result

    def load_dataset_builder(name, subset=None, *, revision):
        config = SimpleNamespace(data_files=state.files)
        return answer((name, subset, revision), SimpleNamespace(config=config))

    def hf_hub_download(name, file, *, repo_type, revision):
        return answer((name, file, repo_type, revision), str(state.folder / file))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr("krakenlm.text.hub.time.sleep", state.waits.append)
    return state


def test_a_hub_data_set_is_read_at_the_commit_of_its_revision_and_split_as_the_authors_do(tmp_path, hub):
    import datasets

    summary = corpus.write(tmp_path / "corpus", HUB)
    assert hub.calls[0] == ("someone/stories", None, "refs/convert/parquet")
    assert set(hub.calls[1:]) == {("someone/stories", f"{n}.jsonl", "dataset", "c0ffee") for n in range(2)}
    stories = [f"story {number} {line}" for number in range(2) for line in range(20)]
    expected = datasets.Dataset.from_dict({"text": stories}).train_test_split(test_size=0.1, seed=2357, shuffle=True)
    assert texts(tmp_path / "corpus", "val") == list(expected["test"]["text"])
    assert texts(tmp_path / "corpus", "train") == list(expected["train"]["text"])
    assert (summary["data"], summary["commit"]) == ("stories", "c0ffee")


def test_what_may_pass_is_waited_for_longer_each_time_and_said(tmp_path, hub, capfd):
    hub.failures = [httpx.ConnectError("no route\nto host"), refused(503), refused(429), TimeoutError("slow")]
    corpus.write(tmp_path / "corpus", HUB)
    assert hub.waits == [2, 4, 8, 16]
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "hub: waiting 2 s for the list of files of someone/stories: no route to host"


def refused(status):
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub/api"))
    return HfHubHTTPError(f"status {status}", response=response)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (refused(404), r"text\.name: .* 'someone/stories' .*status 404"),
        (OfflineModeIsEnabled("offline mode"), r"text\.name: .*offline mode"),
        (RuntimeError("Dataset scripts are no longer supported"), r"scripts .*refs/convert/parquet"),
    ],
)
def test_what_will_not_pass_is_refused_at_once_in_one_line(tmp_path, hub, failure, line):
    hub.failures = [failure]
    with pytest.raises(InputError, match=line) as refusal:
        corpus.write(tmp_path / "corpus", HUB)
    assert "\n" not in str(refusal.value)
    assert hub.waits == []


def test_a_hub_that_stays_away_is_given_up_in_the_end(tmp_path, hub):
    hub.failures = [ConnectionError("gone")] * 99
    with pytest.raises(InputError, match="gone"):
        corpus.write(tmp_path / "corpus", HUB)
    assert sum(hub.waits) > 120


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"test": ["hf://datasets/a/b@c/0.jsonl"]}, r"text\.name: expected a data set with a split train, found test"),
        ({}, r"text\.name: expected a data set with a split train, found no files"),
        ({"train": ["hf://datasets/a/b@c/0.csv"]}, r"text\.name: expected files of \.txt, .* found 0\.csv"),
        ({"train": ["https://else/0.jsonl"]}, r"text\.name: expected files of .* on the hub"),
        ({"train": ["hf://datasets/a/b@c/x/partial-train/0.parquet"]}, r"text\.revision: expected all of .*first part"),
    ],
)
def test_a_hub_data_set_that_cannot_be_used_is_refused_before_anything_is_fetched(tmp_path, hub, files, line):
    hub.files = files
    with pytest.raises(InputError, match=line):
        corpus.write(tmp_path / "corpus", HUB)
    assert len(hub.calls) == 1


def test_documents_that_stood_before_are_counted_and_by_choice_left_out(tmp_path):
    lines = "a\nb\na\nc\nb\na\nd\n"
    assert write_files(tmp_path, lines__txt=lines)["duplicates"] == 3
    assert sorted(all_texts(tmp_path / "corpus")) == sorted("abacbad")
    summary = write_files(tmp_path, {"deduplicate": True}, lines__txt=lines)
    assert summary["documents"] == {"train": 3, "val": 1}
    assert sorted(all_texts(tmp_path / "corpus")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
def test_repeated_checksums_are_found_whatever_is_compared_at_once(monkeypatch, at_once):
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    hashes = np.random.default_rng(0).integers(0, 6, (100, 2)).astype("<u8")
    seen = set()
    expected = [(row in seen, seen.add(row))[0] for row in map(tuple, hashes.tolist())]
    assert duplicates.repeated(hashes).tolist() == expected
    assert duplicates.repeated(hashes[:0]).tolist() == []


def test_several_processes_find_the_same_corpus(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("".join(f"line {number}\n" for number in range(500)))
    monkeypatch.setattr(readers, "PIECE_BYTES", 1000)
    settings = {**FILES, "files": [str(tmp_path / "lines.txt")]}
    one = corpus.write(tmp_path / "one", settings, shards=3)
    two = corpus.write(tmp_path / "two", settings, shards=3, processes=2)
    assert one == two
    assert (tmp_path / "one" / "index.bin").read_bytes() == (tmp_path / "two" / "index.bin").read_bytes()
    assert {piece["shard"] for piece in one["pieces"]} == {0, 1, 2}


def kill_one_child():
    """SIGKILL for the first process that this one starts, as the system kills where memory runs out."""
    deadline = time.monotonic() + 60
    while not multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def test_a_reading_process_that_is_killed_ends_the_stage_in_one_line_and_leaves_no_corpus(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("".join(f"line {number}\n" for number in range(500)))
    monkeypatch.setattr(readers, "PIECE_BYTES", 1000)
    killer = threading.Thread(target=kill_one_child)
    killer.start()
    with pytest.raises(InputError, match="corpus: expected 2 processes to read to the end, found that one ended"):
        corpus.write(tmp_path / "corpus", {**FILES, "files": [str(tmp_path / "lines.txt")]}, processes=2)
    killer.join()
    assert multiprocessing.active_children() == []
    assert list((tmp_path / "corpus").iterdir()) == []


READING = """
import multiprocessing, time
from krakenlm.text.corpus import mapping

if __name__ == "__main__":
    with mapping(2) as apply:
        calls = apply(time.sleep, [0.5] * 4)
        next(calls)
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        time.sleep(60)
"""


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_reading_processes_end_with_the_stage_however_it_ends(tmp_path):
    (tmp_path / "reading.py").write_text(READING)
    with subprocess.Popen([sys.executable, tmp_path / "reading.py"], stdout=subprocess.PIPE, text=True) as stage:
        started = stage.stdout.readline().split()
        assert len(started) == 2
        assert all(running(process) for process in started)
        stage.kill()
    deadline = time.monotonic() + 10
    while any(running(process) for process in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(process) for process in started)
