"""kill -9 of a stage, of Snakemake alone and of both, in every stage; then a plain `snakemake` ends what was begun."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

STAGES = (
    "corpus", "tokenizer", "tokenize", "train", "ngrams", "tasks", "perplexity", "superglue", "shard", "engines",
    "ttft", "collect", "report",
)  # fmt: skip
TIMING = ("ttft", "engines")
TIMES = ("ttft.csv", "ttft_breakdown.csv")  # tables of nothing else
TIMED_COLUMNS = {"ttft_ms_median", "ttft_ms_std", "tokens_per_second", "drift", "drifted"}
TIMED_COLUMNS |= {"other_load", "clock_mhz", "throttled"}


def stages_at_work(folder: Path) -> dict[str, list[int]]:
    """Processes of each `krakenlm <stage>` that was started in `folder`, without forks of theirs."""
    found: dict[str, list[int]] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            if len(words) > 2 and words[1].endswith("/krakenlm") and (entry / "cwd").resolve() == folder:
                found.setdefault(words[2], []).append(int(entry.name))
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked
    return {stage: [each for each in pids if parents.get(each) not in parents] for stage, pids in found.items()}


def kill(process: int) -> bool:
    """Whether there still was such a process to kill."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def interrupt(checkout, stages: set[str], what: str) -> set[str]:
    """Run until some of `stages` are at work, kill -9 them, Snakemake, or both. Empty: the run came to its end."""
    run = checkout.start()
    while run.poll() is None:
        time.sleep(0.1)  # somewhere inside, not always at the first instruction; `collect` is over in half a second
        at_work = stages_at_work(checkout.folder)
        hit = stages & set(at_work)
        if hit and what in ("snakemake", "both"):
            kill(run.pid)
        if hit and what in ("stage", "both"):
            hit = {stage for stage in hit if any(list(map(kill, at_work[stage])))}
        if hit:
            run.wait()
            return hit
    return set()


def untimed(path: Path) -> object:
    """What a result file says besides timings."""
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [{k: v for k, v in row.items() if k not in TIMED_COLUMNS} for row in csv.DictReader(file)]
    if path.name == "corpus.json":  # where and since when its files lie is no content
        corpus = json.loads(path.read_text())
        of_place = ("path", "changed")
        pieces = [{key: value for key, value in piece.items() if key not in of_place} for piece in corpus["pieces"]]
        return corpus | {"pieces": pieces}
    if path.name == "metrics.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "timings"}
    return path.read_bytes()


def results(checkout) -> dict[str, object]:
    root = checkout.folder / "results"
    patterns = ("*.csv", "tiny/*/corpus/*", "tiny/*/tokens/*", "tiny/*/tokenizer.json", "tiny/*/evaluation/**/*.csv")
    models = ("model.safetensors", "metrics.json", "config.json")
    paths = [path for pattern in patterns for path in root.glob(pattern) if path.name not in TIMES]
    paths += [path for name in models for path in root.glob(f"tiny/*/models/*/*/{name}")]
    paths += root.glob("tiny/*/engines/*/*/tp*/rank*.safetensors")
    return {str(path.relative_to(root)): untimed(path) for path in paths if path.suffix != ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stage", "snakemake", "both"])
def test_after_kill_9_in_every_stage_a_plain_snakemake_completes_with_the_same_results(checkout, finished, what):
    left = set(STAGES)
    while hit := interrupt(checkout, left, what):
        left -= hit
    assert not left, left
    run = checkout.miniature()
    assert run.returncode == 0, run.stdout
    assert results(checkout) == results(finished)
    assert not list((checkout.folder / "results").rglob("*.part"))
    assert "Nothing to be done" in checkout.miniature().stdout


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(checkout, finished):
    run = checkout.miniature()
    assert run.returncode == 0, run.stdout
    assert results(checkout) == results(finished)


@pytest.mark.slow
def test_nothing_starts_while_a_timing_job_runs(checkout):
    run = checkout.start()
    seen = []
    while run.poll() is None:
        at_work = stages_at_work(checkout.folder)
        timing = sum(len(processes) for stage, processes in at_work.items() if stage in TIMING)
        seen.append((timing, sum(map(len, at_work.values())) - timing))
        time.sleep(0.01)
    assert run.returncode == 0, (checkout.folder / "snakemake.log").read_text()
    assert any(timing for timing, _ in seen)
    assert not [pair for pair in seen if pair[0] > 1 or (pair[0] and pair[1])]
