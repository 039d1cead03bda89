"""Runs against a stand-in for W&B's server: one that takes everything, and ones that fail, stall and die."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked_runs import KEY, open_run, upload_all

from krakenlm.tracking import folders
from krakenlm.tracking import run as tracking
from krakenlm.tracking.run import STEP

STAGE = Path(__file__).parent / "small_stage.py"


def train(directory, last, mode):
    """Run `small_stage.py` up to step `last`, from its start or, a second time, going on."""
    done = subprocess.run([sys.executable, STAGE, directory, str(last), mode, "to the end"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def train_and_kill(directory, last, mode, arrived):
    """Run `small_stage.py` up to step `last` and kill it, kill -9, there, once `arrived()`."""
    command = [sys.executable, STAGE, directory, str(last), mode, "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"logged {last}\n"
        while not arrived():
            time.sleep(0.05)
        process.kill()


def losses(server):
    """(step, loss) of the one run's history rows, as they arrived."""
    (run,) = server.runs.values()
    return [(row[STEP], row["train/loss"]) for row in run.history if "train/loss" in row]


def expected(last):
    return [(step, 100 / (step + 10)) for step in range(0, last + 10, 10)]


def test_an_online_run_arrives_with_config_metrics_table_artifact_and_summary(server, tmp_path):
    (tmp_path / "table.csv").write_text("model,loss\n")
    with open_run(tmp_path, mode="auto") as run:
        run.log({"train/loss": 3.5}, step=10)
        run.table("scores", [{"model": "kraken", "loss": 2.5}])
        run.bars("chart", [{"model": "kraken", "loss": 2.5}], ["model"], "loss")
        run.summary({"best": 2.25})
        run.wrote(tmp_path / "table.csv", "result")
        run_id = run.wandb_run.id
    received = server.runs[run_id]
    assert received.fields["groupName"] == "tiny-abc"
    assert received.fields["jobType"] == "evaluate"
    assert received.fields["displayName"] == "model seed 0"
    assert received.config["model"] == {"width": 32}
    assert (received.summary["train/loss"], received.summary["best"]) == (3.5, 2.25)
    assert received.exit_code == 0
    table = next(body for path, body in server.uploads.items() if "media/table/scores" in path)
    assert json.loads(table) == {"columns": ["model", "loss"], "data": [["kraken", 2.5]]}
    (artifact,) = server.named("table.csv")
    assert server.uploads[f"artifacts/{artifact['id']}/files/table.csv"] == b"model,loss\n"
    assert folders.unsent(tmp_path) == []


def test_an_online_run_is_tied_to_the_artifacts_that_it_reads(server, tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    with open_run(tmp_path, stage="corpus", mode="online") as run:
        run.wrote(tmp_path / "corpus.json", "corpus")
    with open_run(tmp_path, stage="tokens", mode="online") as run:
        run.read(tmp_path / "corpus.json")
        run_id = run.wandb_run.id
    assert server.runs[run_id].used == ["corpus.json"]


@pytest.mark.parametrize("mode", [pytest.param("online", marks=pytest.mark.slow), "offline"])
def test_after_a_kill_and_a_resume_every_metric_table_and_artifact_has_arrived_once(
    server, tmp_path, monkeypatch, mode
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    train_and_kill(tmp_path, 30, mode, arrived=lambda: mode == "offline" or (server.runs and losses(server)))
    train(tmp_path, 50, mode)
    upload_all(tmp_path)
    assert losses(server) == expected(50)
    assert folders.unsent(tmp_path) == []
    (artifact,) = server.named("model.json")
    tables = [path for path in server.uploads if "media/table/scores" in path]
    assert len(tables) == 1
    assert server.runs[artifact["run"]].exit_code == 0
    assert upload_all(tmp_path) == []


def test_uploaded_offline_runs_are_tied_to_the_artifacts_that_they_read(server, tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    with open_run(tmp_path, stage="corpus", mode="offline") as run:
        run.wrote(tmp_path / "corpus.json", "corpus")
    with open_run(tmp_path, stage="tokens", mode="offline") as run:
        run.read(tmp_path / "corpus.json")
        run_id = run.wandb_run.id
    assert upload_all(tmp_path)[-1] == f"{tmp_path}: 1 of 1 inputs tied to their runs"
    assert server.runs[run_id].used == ["corpus.json"]


@pytest.mark.parametrize("trouble", ["fail", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_server_in_trouble_from_the_start_costs_a_line_and_the_upload_brings_the_run_later(
    server, tmp_path, monkeypatch, capfd, trouble
):
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2.0)
    getattr(server, trouble)()
    started = time.monotonic()
    with open_run(tmp_path, mode="auto") as run:
        run.log({"train/loss": 3.5}, step=10)
    assert time.monotonic() - started < 30  # bounded at all: without the limits it would be hours
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "W&B could not start online" in err
    assert KEY not in err
    server.recover()
    upload_all(tmp_path)
    assert losses(server) == [(10, 3.5)]


def test_a_run_goes_on_offline_beside_a_process_of_wandbs_that_a_hanging_server_keeps(
    server, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "TEAR_DOWN_SECONDS", 0.2)
    server.stall()
    with open_run(tmp_path, mode="auto") as run:
        run.log({"train/loss": 3.5}, step=10)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "W&B could not start online" in err
    server.recover()
    upload_all(tmp_path)
    assert losses(server) == [(10, 3.5)]


@pytest.mark.parametrize("trouble", ["fail", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_server_that_dies_in_the_middle_costs_a_line_and_the_upload_brings_the_rest_later(
    server, tmp_path, monkeypatch, capfd, trouble
):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    with open_run(tmp_path, mode="online") as run:
        run.log({"train/loss": 3.5}, step=10)
        getattr(server, trouble)()
        run.log({"train/loss": 2.5}, step=20)
        run.table("scores", [{"model": "kraken"}])
    # The table is what waits for the server; the end of a run that goes on offline may do so, too.
    assert capfd.readouterr().err.startswith("krakenlm: W&B could not log table scores")
    server.recover()
    assert folders.unsent(tmp_path)
    upload_all(tmp_path)
    # What had arrived before may arrive again, as the same row of the same step.
    assert sorted(set(losses(server))) == [(10, 3.5), (20, 2.5)]
    assert any("media/table/scores" in path for path in server.uploads)


def test_the_key_is_in_no_file_and_no_record(server, tmp_path, capfd):
    with open_run(tmp_path, mode="online") as run:
        run.log({"train/loss": 3.5}, step=1)
        run.summary({"best": 1})
    with open_run(tmp_path, mode="offline", stage="other"):
        pass
    upload_all(tmp_path)
    out, err = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in out + err + json.dumps([run.fields for run in server.runs.values()])
