"""What `krakenlm status` makes of the records of runs and of Snakemake's log."""

import pytest

from krakenlm import status
from krakenlm.errors import InputError

STARTED = "[Wed Nov 25 20:18:21 2026]\nJob {0}: Making {0}\nReason: Missing output files\n"
FINISHED = "Finished jobid: {0} (Rule: make)\n"
FAILED = "Error in rule make:\n    message: None\n    jobid: {0}\n    output: out{0}\n"
KILLED = "Command 'set -euo pipefail;  krakenlm make --out out{0} > log{0} 2>&1' {1}.\n"


def job(number):
    files = {"output": f"out{number}", "log": f"log{number}"}
    return {"id": number, "rule": "make", "message": f"Making {number}"} | files


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def record(results, name, log, jobs, finished=(), targets="", scale="tiny"):
    (results.parent / name).write_text(log)
    made = [{"rule": "make", "output": f"out{number}"} for number in finished]
    status.record(results, scale, name, [job(number) for number in jobs], made, targets)


def states(run):
    return {job.output: job.state for job in run.jobs}


def test_a_job_that_another_target_does_later_stands_as_it_does_there(results):
    begun = STARTED.format(1) + FINISHED.format(1) + STARTED.format(2) + FAILED.format(2)
    record(results, "whole.log", begun, [1, 2, 3])
    record(results, "part.log", STARTED.format(2) + FINISHED.format(2), [2], targets="out2")
    whole, part = status.read(results)
    assert states(whole) == {"out1": "done", "out2": "done", "out3": "left"}
    assert states(part) == {"out2": "done"}
    assert part.targets == "out2"


def test_what_one_other_target_has_made_is_still_known_after_the_next(results):
    record(results, "whole.log", "", [1, 2, 3])
    record(results, "part.log", STARTED.format(2) + FINISHED.format(2), [2], targets="out2")
    record(results, "next.log", STARTED.format(3), [3], finished=[2], targets="out3")
    whole, part = status.read(results)
    assert states(whole) == {"out1": "left", "out2": "done", "out3": "running"}
    assert states(part) == {"out2": "done", "out3": "running"}


def test_what_an_other_target_has_left_undone_is_still_known_after_the_next(results):
    whole_log = "".join(STARTED.format(number) + FINISHED.format(number) for number in (1, 2, 3))
    record(results, "whole.log", whole_log, [1, 2, 3], finished=[4])
    killed = KILLED.format(1, "died with <Signals.SIGKILL: 9>")
    begun = STARTED.format(1) + killed + FAILED.format(1) + STARTED.format(3)
    record(results, "part.log", begun, [1, 3, 4], targets="out3 out4")
    record(results, "next.log", STARTED.format(2), [2], targets="out2")
    record(results, "last.log", STARTED.format(4) + FINISHED.format(4), [4], targets="out4")
    whole, _ = status.read(results)
    assert states(whole) == {"out1": "failed", "out2": "failed", "out3": "failed", "out4": "done"}
    assert {job.output: job.ended for job in whole.jobs if job.ended} == {
        "out1": "killed (SIGKILL)", "out2": "interrupted", "out3": "interrupted"
    }  # fmt: skip
    assert {job.message for job in whole.having("failed")} == {"Making 1", "Making 2", "Making 3"}


def test_a_part_of_another_scale_changes_nothing_of_the_reproduction(results):
    """Both have the table that all scales share as their output."""
    record(results, "whole.log", "", [1, 2])
    record(results, "part.log", STARTED.format(2) + FINISHED.format(2), [2], targets="out2", scale="paper")
    whole, _ = status.read(results)
    assert states(whole) == {"out1": "left", "out2": "left"}
    record(results, "next.log", "", [3], finished=[2], targets="out3", scale="paper")
    whole, _ = status.read(results)
    assert states(whole) == {"out1": "left", "out2": "left"}


def test_a_job_that_was_done_and_is_made_again_later_stands_as_it_does_there(results):
    record(results, "whole.log", STARTED.format(1) + FINISHED.format(1), [1, 2, 3], finished=[3])
    begun = STARTED.format(1) + FAILED.format(1)
    record(results, "part.log", begun, [1, 3], targets="out3")
    whole, _ = status.read(results)
    assert states(whole) == {"out1": "failed", "out2": "left", "out3": "left"}


def test_a_failed_job_without_a_log_is_not_said_to_have_one(results):
    (results.parent / "whole.log").write_text(STARTED.format(1) + FAILED.format(1))
    status.record(results, "tiny", "whole.log", [job(1) | {"log": None}], [], "")
    lines = list(status.describe(results))
    assert lines[lines.index("failed: Making 1") + 1] == "    it has no log; see Snakemake's"


def test_a_new_run_of_the_whole_takes_the_place_of_both(results):
    record(results, "whole.log", "", [1, 2])
    record(results, "part.log", "", [2], targets="out2")
    record(results, "again.log", STARTED.format(1), [1, 2])
    (whole,) = status.read(results)
    assert states(whole) == {"out1": "running", "out2": "left"}


def test_a_run_without_jobs_leaves_the_record_as_it_is(results):
    record(results, "whole.log", STARTED.format(1), [1])
    record(results, "plan.log", "", [], targets="plan")
    (whole,) = status.read(results)
    assert states(whole) == {"out1": "running"}


@pytest.mark.parametrize(
    ("ended", "shown"),
    [
        ("died with <Signals.SIGTERM: 15>", "killed (SIGTERM)"),
        ("returned non-zero exit status 137", "killed (SIGKILL)"),
        ("returned non-zero exit status 2", "failed"),
    ],
)
def test_a_killed_stage_is_told_from_one_that_failed_and_an_empty_log_is_said_to_be(results, ended, shown):
    record(results, "whole.log", STARTED.format(1) + KILLED.format(1, ended) + FAILED.format(1), [1])
    lines = list(status.describe(results))
    place = lines.index(f"{shown}: Making 1 ({results.parent / 'log1'})")
    assert lines[place + 1] == "    it has written nothing into its log"
    (results.parent / "log1").write_text("the last\n")
    assert list(status.describe(results))[place + 1] == "    the last"


def test_a_job_that_was_killed_and_tried_again_runs(results):
    log = STARTED.format(1) + KILLED.format(1, "returned non-zero exit status 143") + FAILED.format(1)
    record(results, "whole.log", log + "Trying to restart job 1.\n" + STARTED.format(1), [1])
    assert states(status.read(results)[0]) == {"out1": "running"}


def test_what_an_earlier_version_has_left_counts_as_nothing(results):
    (results / status.WHOLE).write_text('{"jobs": [{"id": 1}], "finished": {}}')
    record(results, "part.log", STARTED.format(2), [2], targets="out2")
    (part,) = status.read(results)
    assert states(part) == {"out2": "running"}


def test_without_a_record_status_says_what_starts_a_run(results):
    with pytest.raises(InputError, match="start one with `snakemake`"):
        status.read(results)
