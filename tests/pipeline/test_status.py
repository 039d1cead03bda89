"""`krakenlm status` while a real Snakemake runs, after it, and after a failure."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_status_shows_what_has_failed_with_its_log_and_what_runs_with_its_last_line(checkout):
    text = checkout.folder / "my.txt"
    text.write_text("")
    target = ["results/perplexity.csv", "--config", "text={source: files, files: [my.txt], vocabulary: 300}"]
    assert checkout.miniature(*target).returncode != 0
    failed = status(checkout)
    assert row(failed, "corpus") == [0, 0, 0, 1]
    assert row(failed, "train") == [0, 0, 2, 0]
    log = next(checkout.folder.glob("results/tiny/*/logs/corpus.log"))
    assert f"({log.relative_to(checkout.folder)})" in failed.replace(f"{checkout.folder}/", "")
    assert log.read_text().strip().splitlines()[-1][:100] in failed
    with hold(log.parents[1] / "corpus", "test"):
        run = checkout.start(*target)
        try:
            while "waiting for" not in (running := status(checkout)):
                assert run.poll() is None, (checkout.folder / "snakemake.log").read_text()
                time.sleep(0.1)
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert "at work" in running.splitlines()[0]
    assert row(running, "corpus") == [0, 1, 0, 0]
    assert "running: Corpus: files text" in running
    ended = status(checkout)
    assert "ended" in ended.splitlines()[0]
    assert row(ended, "corpus") == [0, 0, 0, 1]
