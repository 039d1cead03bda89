"""`krakenlm status` while a real Snakemake runs, after it, and after a failure."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krakenlm.files import hold

KRAKENLM = Path(sys.executable).parent / "krakenlm"


def status(checkout):
    run = subprocess.run([KRAKENLM, "status"], cwd=checkout.folder, capture_output=True, text=True)
    return run.stdout + run.stderr


def row(text, rule):
    """What stands in a rule's row: done, running, left and failed, empty ones as 0."""
    lines = text.splitlines()
    line, ends = next(line for line in lines if line.startswith(rule)), lines[1]
    columns = [ends.index(name) + len(name) for name in ("done", "running", "left", "failed")]
    return [int(line[end - 8 : end].strip() or 0) for end in columns]


def test_status_after_a_run_says_that_every_job_is_done(finished):
    text = status(finished)
    assert text.startswith("scale tiny, started ")
    assert "ended" in text.splitlines()[0]
    assert row(text, "train") == [2, 0, 0, 0]
    assert row(text, "report_page") == [1, 0, 0, 0]
    assert "running:" not in text
    assert "failed:" not in text


def test_status_without_a_run_says_what_starts_one(checkout):
    assert "start one with `snakemake`" in status(checkout)


def test_status_goes_on_showing_the_reproduction_after_snakemake_plan(finished):
    before = status(finished)
    assert finished.miniature("plan").returncode == 0
    assert status(finished) == before


def test_a_run_until_a_rule_is_a_part_of_the_reproduction(checkout):
    run = checkout.miniature("--until", "corpus")
    assert run.returncode == 0, run.stdout
    text = status(checkout)
    assert text.startswith("--until corpus, scale tiny, started ")
    assert row(text, "corpus") == [1, 0, 0, 0]


@pytest.fixture
def target(checkout):
    """What makes a checkout read a text of its own, and no more than that."""
    (checkout.folder / "my.txt").write_text("Nothing much.\n" * 100)
    return ["results/perplexity.csv", "--config", "text={source: files, files: [my.txt], vocabulary: 300}"]


@contextlib.contextmanager
def waiting_corpus(checkout, target):
    """A Snakemake whose corpus stage waits for a lock, as one at work; its whole group is killed in the end."""
    listed = checkout.miniature("--dry-run", *target).stdout
    corpus = re.search(r"results/tiny/[^/]+/corpus(?=/corpus.json)", listed)[0]
    with hold(checkout.folder / corpus, "test"):
        run = checkout.start(*target)
        try:
            while "waiting for" not in status(checkout):
                assert run.poll() is None, (checkout.folder / "snakemake.log").read_text()
                time.sleep(0.1)
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def stages(run):
    """Processes of `krakenlm` that a Snakemake has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            started = os.getpgid(int(path.name)) == run.pid
            if started and (path / "comm").read_text().strip() == "krakenlm":
                found.append(int(path.name))
    return found


def test_status_shows_what_has_failed_with_the_end_of_its_log(checkout, target):
    (checkout.folder / "my.txt").write_bytes(b"no text: \xff\n" * 100)
    assert checkout.miniature(*target).returncode != 0
    failed = status(checkout)
    assert failed.startswith("results/perplexity.csv, scale tiny, started ")
    assert row(failed, "corpus") == [0, 0, 0, 1]
    assert row(failed, "train") == [0, 0, 2, 0]
    log = next(checkout.folder.glob("results/tiny/*/logs/corpus.log"))
    assert "failed: Corpus: files text" in failed
    assert f"({log.relative_to(checkout.folder)})" in failed.replace(f"{checkout.folder}/", "")
    assert log.read_text().strip().splitlines()[-1][:100] in failed


def test_a_run_that_fails_leaves_the_page_of_what_there_is_and_the_report_to_be_made(checkout):
    (checkout.folder / "my.txt").write_bytes(b"no text: \xff\n" * 100)
    results = checkout.folder / "results"
    results.mkdir()
    (results / "perplexity.csv").write_text("of,another,run\n1,2,3\n")
    setting = ["--config", "text={source: files, files: [my.txt], vocabulary: 300}"]
    run = checkout.miniature(*setting)
    assert run.returncode != 0
    assert "krakenlm: this run's report so far: results/report-so-far.html" in run.stdout
    page = (results / "report-so-far.html").read_text()
    assert "This run has not come to its end" in page
    log = next(results.glob("tiny/*/logs/corpus.log")).relative_to(checkout.folder)
    assert f"Corpus: files text, split into training and validation: failed ({log})" in " ".join(
        page.replace("<li>", "").split()
    )
    assert "No perplexity was measured in this run." in page
    (command,) = re.findall(r"Run <code>(.*?)</code> again", page)
    assert (checkout.folder / command.removeprefix("snakemake --configfile ")).is_file()
    again = checkout.miniature("--dry-run", *setting).stdout.split("Job stats:")[1]
    assert any(line.split() == ["report_page", "1"] for line in again.splitlines())


def test_a_run_that_succeeds_takes_the_page_of_an_earlier_failure_away(finished):
    assert (finished.folder / "results" / "report.html").is_file()
    assert not (finished.folder / "results" / "report-so-far.html").exists()


def test_status_shows_what_runs_with_its_last_line_and_what_was_interrupted_with_its_snakemake(checkout, target):
    with waiting_corpus(checkout, target):
        running = status(checkout)
    assert "at work" in running.splitlines()[0]
    assert row(running, "corpus") == [0, 1, 0, 0]
    assert "running: Corpus: files text" in running
    ended = status(checkout)
    assert "ended" in ended.splitlines()[0]
    assert row(ended, "corpus") == [0, 0, 0, 1]
    assert "interrupted: Corpus: files text" in ended


def test_a_stage_that_was_killed_is_said_to_be_by_which_signal(checkout, target):
    with waiting_corpus(checkout, target) as run:
        (stage,) = stages(run)
        os.kill(stage, signal.SIGKILL)
        assert run.wait() != 0
    killed = status(checkout)
    assert "killed (SIGKILL): Corpus: files text" in killed
    assert "waiting for process" in killed
    assert row(killed, "corpus") == [0, 0, 0, 1]
