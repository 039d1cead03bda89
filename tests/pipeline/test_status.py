"""`krakenlm status` after a real Snakemake."""

import subprocess
import sys
from pathlib import Path

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
