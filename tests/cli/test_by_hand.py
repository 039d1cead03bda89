"""Commands as a user types them, wrong ones above all: one line that names what was typed, nothing left behind."""

import json
import os
import re
import sys

import pytest

from krakenlm import cli
from krakenlm.latency import exclusive

SETTINGS = {
    "architectures": ["standard", "kraken"], "vocab_size": 64, "contexts": [8], "links": ["loopback"], "batch": 1,
    "runs": 2, "most_runs": 3, "precision": 0.5, "warmup": 0, "profiled_runs": 1, "dtype": "float32", "threads": 1,
    "seed": 0,
}  # fmt: skip
SHAPE = '{"n_layer": 1, "width": 16, "n_head": 2}'
ADVISE = ("advise", "--hardware", "h100", "--params", "1e9", "--tp", "2", "--context", "64")
TIMELINE = ("timeline", "--size", SHAPE, "--hardware", "h100", "--tp", "2", "--out", "t.json")


def ttft(*words, shape=SHAPE, **changes):
    given = ("--shape", shape, "--settings", json.dumps(SETTINGS | changes), "--breakdown", "b.csv", "--out", "t.csv")
    return ("ttft", "mine", "--tp", "1", *given, *words)


@pytest.fixture
def by_hand(tmp_path, tmp_path_factory, monkeypatch, capfd):
    """A function that runs `krakenlm` with some words in a folder of its own; (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    # What else runs on this machine is not waited for, and said to be.
    monkeypatch.setattr(exclusive, "TIMING_LOCK", tmp_path_factory.mktemp("lock") / "timing")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["krakenlm", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*ADVISE, "--dtype", "float8"), "--dtype"),
        ((*ADVISE, "--heads", "foo"), "--heads"),
        ((*ADVISE, "--hardware", "foo"), "--hardware: expected one of a100"),
        ((*ADVISE, "--tp", "500"), "--params: expected at least"),
        ((*ADVISE, "--perplexity", "none.csv"), "--perplexity: expected a table"),
        ((*ADVISE, "--out", "."), "--out: expected a file to write, found the folder ."),
        ((*TIMELINE, "--architecture", "foo"), "--architecture: expected one of standard"),
        ((*TIMELINE, "--architecture", "kraken", "--dtype", "float8"), "--dtype"),
        ((*TIMELINE, "--architecture", "standard", "--degree", "2"), "--degree: expected none beside standard"),
        ((*TIMELINE, "--architecture", "kraken", "--size", "2b"), "--size: expected one of 1.3b"),
        ((*TIMELINE, "--architecture", "standard", "--out", "."), "--out: expected a file to write"),
        (ttft("--tp", "0"), "--tp"),
        (ttft("--tp", "-2"), "--tp"),
        (ttft("--out", "."), "--out: expected a file to write"),
        (ttft("--breakdown", "."), "--breakdown: expected a file to write"),
        (ttft(shape='{"n_layer": 1}'), "--shape: n_head: expected a value, found none"),
        (ttft(shape='{"n_layer": 1, "width": 15, "n_head": 2}'), "--shape: width: expected a multiple of n_head (2)"),
        (ttft(contexts=16), "--settings: contexts: expected a list, each entry a whole number of at least 1, 1 entry"),
        (ttft(contexts=[]), "--settings: contexts: expected a list"),
        (ttft(contexts=["16"]), "--settings: contexts: expected a list"),
        (ttft(dtype="float8"), "--settings: dtype: expected one of float32, float16, bfloat16, found 'float8'"),
        (ttft(runs=0), "--settings: runs: expected a whole number of at least 1, found 0"),
        (ttft(runs=True), "--settings: runs: expected a whole number"),
        (ttft(precision="high"), "--settings: precision: expected a number"),
        (ttft(precision=0), "--settings: precision: expected a number above 0, found 0"),
        (ttft(links="loopback"), "--settings: links: expected a list, each entry a text"),
        (ttft(runs=4), "--settings: most_runs: expected at least runs (4), found 3"),
        (ttft(architectures=["foo"]), "architecture: expected one of standard"),
        (("generate", "nowhere", "Ann"), "nowhere: expected a model folder, found none"),
        (("shard", "nowhere", "--tp", "2", "--out", "shards"), "nowhere: expected a model folder, found none"),
        (("perplexity", "nowhere", "--tokens", ".", "--out", "p.csv"), "nowhere: expected a model folder, found none"),
        (("hardware", "calibrate", "--ranks", "99", "--out", "m.yaml"), "--ranks: expected tp x threads within this"),
        (ttft("--tp", "99"), "--tp: expected tp x threads within this machine's"),
        (("import", "authors", ".", "model"), ".: expected a checkpoint, found none to read (Is a directory)"),
        (("plan",), "config/config.yaml: expected in the working directory, found none; start in the folder of the"),
        (("import", "model", ".", "model"), "config.json: expected a JSON file, found none"),
    ],
)
def test_a_wrong_word_is_one_line_that_names_it_and_leaves_nothing(by_hand, tmp_path, words, named):
    status, out, error = by_hand(*words)
    assert status == 2
    assert named in error
    assert out == ""
    if not error.startswith("Usage: "):  # typer's own
        assert error.startswith("krakenlm: ")
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_printed_with_the_commit_of_a_clone(by_hand):
    status, out, _ = by_hand("--version")
    assert status == 0
    assert re.fullmatch(r"krakenlm \d+\.\d+\.\d+(, commit [0-9a-f]{12}(, modified)?)?\n", out)


def test_hardware_of_the_clone_is_found_in_any_folder_and_nothing_is_left_there(by_hand, tmp_path):
    status, out, _ = by_hand(*ADVISE, "--out", "advice.csv")
    assert status == 0
    assert out.startswith("architecture")
    assert [path.name for path in tmp_path.iterdir()] == ["advice.csv"]


def test_a_stage_by_hand_leaves_what_it_writes_and_no_lock(by_hand, tmp_path):
    status, _, error = by_hand("shard", "--random", SHAPE, "kraken", "--tp", "2", "--out", "shards")
    assert (status, error) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.fixture
def theirs(tmp_path):
    """A folder that the user who runs this may not enter: where that is root, another one."""
    (tmp_path / "theirs").mkdir(mode=0)
    root = os.getuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    yield tmp_path / "theirs"
    if root:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("words", [(*ADVISE, "--out"), ("shard", "--random", SHAPE, "kraken", "--tp", "2", "--out")])
def test_a_place_in_a_folder_of_another_users_is_refused_in_one_line(by_hand, words, theirs):
    status, _, error = by_hand(*words, theirs / "x")
    assert status == 2
    assert error.startswith("krakenlm: --out: expected a place to write")
    assert error.count("\n") == 1
