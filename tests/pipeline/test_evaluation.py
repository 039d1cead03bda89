"""Evaluation through the real Snakefile: SuperGLUE's own download, every protocol of perplexity, ranks and GPUs."""

import csv
import json
from pathlib import Path

import pytest

DOWNLOAD = Path(__file__).parents[3] / "shared" / "data" / "fewglue"
EXAMPLES = 3


def rows(checkout, table):
    with open(checkout.folder / "results" / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def download(checkout):
    """The first lines of each task of the official download, in the checkout's folder."""
    if not DOWNLOAD.is_dir():
        pytest.skip(f"needs labelled examples of the official download in {DOWNLOAD}")
    for source in DOWNLOAD.glob("*/train.jsonl"):
        path = checkout.folder / "SuperGLUE" / source.parent.name / "train.jsonl"
        path.parent.mkdir(parents=True)
        with open(source, encoding="utf-8") as lines:
            path.write_text("".join(line for line, _ in zip(lines, range(EXAMPLES), strict=False)), encoding="utf-8")
    return checkout.folder / "SuperGLUE"


@pytest.mark.slow
def test_the_official_download_is_scored_and_a_changed_line_of_it_is_scored_again(checkout, download):
    settings = {"stride": 64, "authors_windows": 4, "ngrams": False}
    settings["superglue"] = {"source": "official", "folder": "SuperGLUE", "split": "train"}
    # An answer of MultiRC has to fit the block.
    target = ("results/comparisons.csv", "--config", "block_size=512", f"evaluation={json.dumps(settings)}")
    run = checkout.miniature(*target)
    assert run.returncode == 0, run.stdout
    scores = rows(checkout, "superglue")
    assert {row["data"] for row in scores} == {"SuperGLUE, official train"}
    counts = {row["task"]: int(row["n"]) for row in scores}
    assert {counts[task] for task in ("boolq", "cb", "copa", "record", "rte", "wic", "wsc")} == {EXAMPLES}
    assert counts["multirc"] > EXAMPLES
    protocols = {"whole validation set, non-overlapping windows", "whole validation set, stride 64", "authors"}
    assert {row["protocol"] for row in rows(checkout, "perplexity")} == protocols
    compared = {row["measure"]: row for row in rows(checkout, "comparisons")}
    assert {f"loss, {protocol}" for protocol in protocols} < set(compared)
    assert "multirc, acc (corrected)" in compared
    assert "multirc, acc" not in compared
    lines = (download / "COPA" / "train.jsonl").read_text().splitlines(keepends=True)
    (download / "COPA" / "train.jsonl").write_text("".join(lines[:2]))
    again = checkout.miniature(*target)
    assert again.returncode == 0, again.stdout
    assert "train" not in {line.split()[0] for line in again.stdout.split("Job stats:")[1].splitlines() if line.split()}
    assert {row["n"] for row in rows(checkout, "superglue") if row["task"] == "copa"} == {"2"}


def test_a_missing_task_of_the_download_is_named_before_anything_starts(checkout, download):
    (download / "WiC" / "train.jsonl").unlink()
    settings = {"superglue": {"source": "official", "folder": "SuperGLUE", "split": "train"}}
    run = checkout.miniature("results/superglue.csv", "--config", f"evaluation={json.dumps(settings)}")
    assert run.returncode != 0
    assert "SuperGLUE/WiC/train.jsonl" in run.stdout
    assert not list((checkout.folder / "results").glob("tiny/*/models"))


def test_the_ranks_of_an_evaluation_are_the_configs_and_more_than_gpus_are_refused(checkout):
    path = checkout.claim_gpus(2)
    arguments = ("results/perplexity.csv", "results/superglue.csv", "--config", "device=cuda")
    run = checkout.miniature("--dry-run", "--printshellcmds", *arguments, "evaluation={ranks: 2}", PATH=path)
    assert run.returncode == 0, run.stdout
    for stage in ("perplexity", "superglue"):
        commands = [line for line in run.stdout.splitlines() if f"krakenlm {stage} " in line]
        assert len(commands) == 2
        assert all("--ranks 2 " in command for command in commands)
    run = checkout.miniature(*arguments, "evaluation={ranks: 3}", PATH=path)
    assert run.returncode != 0
    assert "evaluation.ranks: expected at most this machine's 2 GPU(s), found 3; lower it" in run.stdout


@pytest.mark.slow
def test_two_models_are_evaluated_at_once_each_with_a_gpu_of_its_own(checkout):
    (checkout.folder / "leases").mkdir()
    arguments = ("results/perplexity.csv", "--cores", "2", "--config", "device=cuda", "evaluation={ngrams: false}")
    claimed = {"PATH": checkout.claim_gpus(2), "TMPDIR": str(checkout.folder / "leases")}
    # Trained before, so that both evaluations can begin at once.
    for end in (("--until", "train"), ()):
        run = checkout.miniature(*arguments, *end, **claimed)
        assert run.returncode == 0, run.stdout
    # A stage looks at the second GPU only while another one holds the first.
    leases = {path.name for path in (checkout.folder / "leases").glob("krakenlm-GPU-*.lock")}
    assert leases == {"krakenlm-GPU-0.lock", "krakenlm-GPU-1.lock"}
