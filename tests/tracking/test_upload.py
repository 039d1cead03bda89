"""`krakenlm upload` to a stand-in for W&B's server, also of folders as killed processes leave them."""

import os
import subprocess
import sys

import pytest
import wandb
from tracked_runs import KEY, open_run, upload_all

from krakenlm.tracking import folders, upload
from krakenlm.tracking.ledger import Ledger
from krakenlm.tracking.run import STEP


def upload_for_6_seconds(directory):
    """The lines that the command says on stdout; it says nothing else, and ends by itself."""
    command = [sys.executable, "-c", "from krakenlm.cli import main; main()", "upload", directory, "--minutes", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True)
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


@pytest.mark.parametrize("size", [2**15, 2**15 + 3, 2**15 + 3000, 2**16 + 10])
def test_a_folder_that_ends_in_the_middle_of_a_record_is_sent_once_and_what_went_on_after_it_too(
    server, tmp_path, size
):
    with open_run(tmp_path, mode="offline") as run:
        for step in range(300):
            run.log({"train/loss": float(step)}, step=step)
    wandb.teardown()
    (first,) = folders.unsent(tmp_path)
    os.truncate(folders.records_file(first), size)
    assert 50 < len(folders.logged([first], STEP)) < 250
    with open_run(tmp_path, mode="offline") as run:
        for step in range(300):
            run.log({"train/loss": float(step)}, step=step)
    assert upload_all(tmp_path) == [f"{tmp_path}: 1 runs sent, from 2 folders"]
    (received,) = server.runs.values()
    assert [row["train/loss"] for row in received.history] == list(range(300))


@pytest.mark.parametrize("trouble", ["fail", "stall"])
def test_runs_that_a_server_does_not_take_are_one_line_and_stay(server, tmp_path, trouble):
    two_offline_runs(tmp_path)
    getattr(server, trouble)()
    (line,) = upload_for_6_seconds(tmp_path)
    assert line.startswith(f"{tmp_path}: 2 of 2 run folders could not be sent")
    assert len(folders.unsent(tmp_path)) == 2
    server.recover()
    assert len(upload_all(tmp_path)) == 2
    assert folders.unsent(tmp_path) == Ledger(tmp_path).unlinked() == []


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
