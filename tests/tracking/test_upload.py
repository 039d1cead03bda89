"""`krakenlm upload` to a stand-in for W&B's server, also of folders as killed processes leave them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stages import LOSS, MANY, arrived, go_on, losses, on_disk, stage, wait_for, wandbs_process
from tracked_runs import KEY, SECONDS, open_run, tear_down, upload_all

from krakenlm.tracking import folders, upload
from krakenlm.tracking import run as tracking
from krakenlm.tracking.ledger import Ledger
from krakenlm.tracking.run import STEP


def upload_for_6_seconds(directory):
    """The lines that the command says on stdout; it says nothing else, and ends by itself."""
    command = [sys.executable, "-c", "from krakenlm.cli import main; main()", "upload", directory, "--minutes", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY not in done.stdout
    return done.stdout.splitlines()


def two_offline_runs(directory):
    """Runs of which the second reads what the first wrote."""
    (directory / "corpus.json").write_text("{}")
    with open_run(directory, stage="corpus", mode="offline") as run:
        run.wrote(directory / "corpus.json", "corpus")
    with open_run(directory, stage="tokens", mode="offline") as run:
        run.read(directory / "corpus.json")


# At the end of a block, in the head of a record at its beginning, in a record, and in a record of two blocks.
SIZES = [2**15 + 3000, *(pytest.param(size, marks=pytest.mark.slow) for size in (2**15, 2**15 + 3, 2**16 + 10))]


@pytest.mark.parametrize("size", SIZES)
def test_a_folder_that_ends_in_the_middle_of_a_record_is_sent_once_and_what_went_on_after_it_too(
    server, tmp_path, size
):
    with open_run(tmp_path, mode="offline") as run:
        for step in range(300):
            run.log({"train/loss": float(step)}, step=step)
    tear_down()
    (first,) = folders.unsent(tmp_path)
    os.truncate(folders.records_file(first), size)
    assert 50 < len(folders.logged([first], STEP)) < 250
    with open_run(tmp_path, mode="offline") as run:
        for step in range(300):
            run.log({"train/loss": float(step)}, step=step)
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 2 folders"]
    (received,) = server.runs.values()
    assert [row["train/loss"] for row in received.history] == list(range(300))


@pytest.mark.parametrize("trouble", ["fail", pytest.param("stall", marks=pytest.mark.slow)])
def test_runs_that_a_server_does_not_take_are_one_line_and_stay(server, tmp_path, trouble):
    two_offline_runs(tmp_path)
    getattr(server, trouble)()
    (line,) = upload_for_6_seconds(tmp_path)
    assert line.startswith(f"{tmp_path}: 2 of 2 run folders could not be sent")
    assert len(folders.unsent(tmp_path)) == 2
    server.recover()
    assert len(upload_all(tmp_path)) == 2
    assert folders.unsent(tmp_path) == Ledger(tmp_path).unlinked() == []


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["fail", "stall"])
def test_inputs_that_a_server_does_not_take_are_one_line_and_stay(server, tmp_path, trouble):
    two_offline_runs(tmp_path)
    upload_all(tmp_path)
    with open_run(tmp_path, stage="train", mode="online") as run:
        run.wandb_run.use_artifact = None  # as when it does not come to it
        run.read(tmp_path / "corpus.json")
    getattr(server, trouble)()
    (line,) = upload_for_6_seconds(tmp_path)
    assert line.startswith(f"{tmp_path}: 0 of 1 inputs tied to their runs; ")
    assert line.endswith("; the next call tries the others")
    assert len(Ledger(tmp_path).unlinked()) == 1
    server.recover()
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 of 1 inputs tied to their runs"]


def test_beside_a_folder_without_a_run_nothing_is_sent_from_elsewhere(server, tmp_path, monkeypatch):
    with open_run(tmp_path, mode="offline"):
        pass
    calls = []
    monkeypatch.setattr(upload, "wandb_sync", lambda waiting, end: calls.append(waiting))
    monkeypatch.setattr(folders, "records", lambda folder: [])
    found = folders.run_folders(tmp_path)
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 1 folders"]
    # A second one, of no folder, would send those of the working directory.
    assert calls == [found]


def none_is_written(directory):
    """Wait until W&B's own process has ended, as it does after its stage."""
    wait_for(lambda: folders.being_written(folders.unsent(directory)), lambda found: not found)


def killed_twice(server, directory, half):
    """An online stage whose second process, too, is killed, far behind what it has taken over from its first one.

    Args:
        half: whether the first half of what the first process logs arrives; nothing else does.
    """
    for last, size in ((MANY, 2**16), (3 * MANY, 5 * 2**15)):
        with stage(directory, last, "online", "hang") as process:
            wait_for(lambda: arrived(server), lambda rows: rows >= 140 or not half)
            server.fail()
            go_on(process, last)
            wait_for(lambda: on_disk(directory), lambda sizes, size=size: sizes[-1] >= size)
        server.recover()
    none_is_written(directory)


@pytest.mark.slow
@pytest.mark.parametrize(("half", "among"), [(False, False), (True, False), (False, True)])
def test_rows_that_a_killed_process_had_taken_over_from_another_are_sent_once(
    server, tmp_path, monkeypatch, half, among
):
    if half:
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    killed_twice(server, tmp_path, half)
    first, second = folders.unsent(tmp_path)
    if among:  # killed with the first of what it took over on the disk
        os.truncate(folders.records_file(second), 2**15 + 3)
    had = [step for step, _ in losses(server)] if half else []
    kept = folders.logged([first, second], STEP)
    assert (len(had) >= 140, max(kept) > 2 * MANY) == (half, not among)
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 1 folders"]
    assert [step for step, _ in losses(server)] == sorted({*had, *kept})
    assert folders.unsent(tmp_path) == []


@pytest.mark.slow
def test_rows_of_a_run_whose_end_the_server_missed_twice_are_sent_once(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 1.0)
    for last in (20, 30):
        with open_run(tmp_path, mode="online") as run:
            server.fail()
            for step in range(10, last + 10, 10):
                run.log({LOSS: step / 10}, step=step)
        tear_down()
        server.recover()
    assert capfd.readouterr().err.count("krakenlm: W&B could not finish") == 2
    assert len(folders.unsent(tmp_path)) == 2
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 1 folders"]
    assert losses(server) == [(10, 1.0), (20, 2.0), (30, 3.0)]


def row(step, **values):
    return {"type": "history", "history": {"item": {STEP: step, "_step": step, **values}}}


SUMMARY = {"type": "summary", "summary": {"update": {LOSS: 1.0, "_runtime": 2, "best": 1.0}}}
ARTIFACT = {"type": "artifact", "artifact": {"name": "model.json"}}
TABLE = row(2, **{"scores._type": "table-file", "scores.nrows": 2})
FIRST = [row(step, **{LOSS: 1.0}) for step in (0, 1, 2)]
LATER = [row(step, **{LOSS: 1.0}) for step in (1, 2, 3)]


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"run-1": FIRST, "run-2": LATER}, ["run-1"]),
        ({"run-1": FIRST, "run-2": LATER[:1]}, ["run-2"]),
        ({"run-1": FIRST, "run-2": FIRST}, ["run-1"]),
        ({"run-1": FIRST, "run-2": LATER[:1], "run-3": LATER}, ["run-2", "run-1"]),
        ({"run-1": FIRST, "run-2": [*LATER[:1], LATER[2]]}, []),
        ({"run-1": FIRST, "offline-run-2": FIRST}, []),
        *(({"run-1": [*FIRST, other], "run-2": LATER}, []) for other in (SUMMARY, ARTIFACT, TABLE)),
        *(({"run-1": [other], "run-2": []}, ["run-2"]) for other in (SUMMARY, ARTIFACT, TABLE)),
        ({"run-1": [*FIRST, SUMMARY, ARTIFACT, TABLE], "run-2": [*LATER, TABLE, ARTIFACT, SUMMARY]}, ["run-1"]),
    ],
)
def test_a_folder_needs_no_upload_only_if_another_has_all_of_it_that_had_not_arrived(monkeypatch, contents, expected):
    monkeypatch.setattr(folders, "records", lambda folder: contents[folder.name])
    assert [folder.name for folder in folders.needless(list(map(Path, contents)), STEP)] == expected


def test_a_folder_that_wandbs_own_process_still_writes_to_is_left_alone_until_it_has_ended(server, tmp_path):
    with stage(tmp_path, MANY, "offline", "hang") as process:
        go_on(process, MANY)
        wait_for(lambda: on_disk(tmp_path), lambda sizes: sizes[-1] >= 2**16)
        writer = wandbs_process(process.pid)
        os.kill(writer, signal.SIGSTOP)  # it would end with its stage otherwise
    try:
        sizes = on_disk(tmp_path)
        assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs are still being written by W&B; upload again later"]
        assert (on_disk(tmp_path), server.runs) == (sizes, {})
    finally:
        os.kill(writer, signal.SIGKILL)
    none_is_written(tmp_path)
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 1 folders"]
    assert losses(server)
