"""Runs against a stand-in for W&B's server: one that takes everything, and ones that fail, stall and die."""

import json
import os
import signal
import time

import pytest
from stages import (
    LOSS,
    MANY,
    SPEED,
    arrived,
    counts,
    end_of,
    go_on,
    losses,
    on_disk,
    stage,
    train,
    wait_for,
    wandbs_process,
)
from tracked_runs import KEY, open_run, tear_down, upload_all

from krakenlm.tracking import folders, service
from krakenlm.tracking import run as tracking
from krakenlm.tracking.run import STEP


def tables(server):
    """Where the tables lie that arrived."""
    return [path for path in server.uploads if "media/table/scores" in path]


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


# Whether the stage is online, and whether what it logged up to halfway has arrived: W&B's own process waits 15 s first.
SLOW = [pytest.param(*way, marks=pytest.mark.slow) for way in (("offline", False), ("online", True))]
WAYS = [("online", False), *SLOW]


@pytest.mark.parametrize(("mode", "half"), WAYS)
def test_after_a_kill_and_a_resume_every_metric_table_and_artifact_has_arrived_once(
    server, tmp_path, monkeypatch, mode, half
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    with stage(tmp_path, MANY, mode, "hang") as process:
        wait_for(lambda: arrived(server), lambda rows: rows >= 140 or not half)
        server.fail()  # what comes now is on the disk only
        go_on(process, MANY)
        wait_for(lambda: on_disk(tmp_path), lambda sizes: sizes[-1] >= 2**16)
    server.recover()
    assert 140 <= arrived(server) < 200 if half else arrived(server) == 0
    kept = folders.logged(folders.unsent(tmp_path), STEP)
    assert max(kept) > MANY / 2
    train(tmp_path, MANY + 50, mode)
    upload_all(tmp_path)
    assert losses(server) == expected(MANY + 50)
    # What the first process had on the disk, and what the second has computed from its checkpoint on.
    speeds = {step for step, row in kept.items() if SPEED in row} | set(range(MANY, MANY + 60, 10))
    assert counts(server, SPEED) == dict.fromkeys(speeds, 1)
    assert folders.unsent(tmp_path) == []
    (artifact,) = server.named("model.json")
    assert sum(counts(server, "scores").values()) == len(tables(server)) == 1
    assert server.runs[artifact["run"]].exit_code == 0
    assert upload_all(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "times"), [("offline", 1), ("online", 2)])
def test_after_a_kill_behind_table_and_artifact_nothing_but_a_table_that_had_arrived_is_there_twice(
    server, tmp_path, monkeypatch, mode, times
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    with stage(tmp_path, MANY, mode, "outputs, hang") as process:
        go_on(process, MANY)
        wait_for(lambda: (server.named("model.json"), arrived(server)), lambda seen: all(seen) or mode == "offline")
    train(tmp_path, MANY, mode)
    upload_all(tmp_path)
    assert losses(server) == expected(MANY)
    # Its newest row is the one that is shown, and says the step that it came after.
    assert counts(server, "scores") == {MANY: times}
    assert len(tables(server)) == times
    (artifact,) = server.named("model.json")
    assert server.runs[artifact["run"]].summary[STEP] == MANY
    assert folders.unsent(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "half"), WAYS)
def test_when_wandbs_own_process_is_killed_the_whole_curve_goes_on_in_an_offline_folder(
    server, tmp_path, monkeypatch, mode, half
):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    with stage(tmp_path, MANY, mode) as process:
        wait_for(lambda: arrived(server), lambda rows: rows or not half)
        os.kill(wandbs_process(process.pid), signal.SIGKILL)
        err = end_of(process, MANY)
    assert err.count("\n") == 1
    assert err.startswith("krakenlm: W&B could not log")
    assert "; going on offline; " in err
    assert folders.is_offline(folders.unsent(tmp_path)[-1])
    upload_all(tmp_path)
    for name in (LOSS, SPEED):
        found = counts(server, name)
        assert sorted(found) == [step for step, _ in expected(MANY)]
        # What had arrived before arrives once more.
        assert set(found.values()) == ({1, 2} if half else {1})
    assert len(server.named("model.json")) == len(tables(server)) == 1


def test_what_was_logged_before_wandbs_own_process_is_killed_is_in_the_folder_after_it(tmp_path, capfd):
    (tmp_path / "model.json").write_text("{}")
    with open_run(tmp_path, mode="offline") as run:
        run.log({"train/loss": 3.5}, step=10)
        run.table("scores", [{"model": "kraken"}])
        run.wrote(tmp_path / "model.json", "model")
        os.kill(wandbs_process(os.getpid()), signal.SIGKILL)
    assert capfd.readouterr().err.startswith("krakenlm: W&B could not finish: ")
    tear_down()
    found = folders.records(folders.unsent(tmp_path)[-1])
    assert folders.logged(folders.unsent(tmp_path), STEP) == {10: {"train/loss": 3.5}}
    assert "scores" in json.dumps([record for record in found if record["type"] == "history"])
    assert "model.json" in [record["artifact"]["name"] for record in found if record["type"] == "artifact"]


def test_uploaded_offline_runs_are_tied_to_the_artifacts_that_they_read(server, tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    with open_run(tmp_path, stage="corpus", mode="offline") as run:
        run.wrote(tmp_path / "corpus.json", "corpus")
    with open_run(tmp_path, stage="tokens", mode="offline") as run:
        run.read(tmp_path / "corpus.json")
        run_id = run.wandb_run.id
    assert upload_all(tmp_path)[-1] == f"{tmp_path}: 1 of 1 inputs tied to their runs"
    assert server.runs[run_id].used == ["corpus.json"]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["fail", "stall"])
def test_a_server_in_trouble_from_the_start_costs_a_line_and_the_upload_brings_the_run_later(
    server, tmp_path, monkeypatch, capfd, trouble
):
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
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


@pytest.mark.slow
def test_a_run_goes_on_offline_beside_a_process_of_wandbs_that_a_hanging_server_keeps(
    server, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
    monkeypatch.setattr(service, "TEAR_DOWN_SECONDS", 0.2)
    server.stall()
    with open_run(tmp_path, mode="auto") as run:
        run.log({"train/loss": 3.5}, step=10)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "W&B could not start online" in err
    server.recover()
    upload_all(tmp_path)
    assert losses(server) == [(10, 3.5)]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["fail", "stall"])
def test_a_server_that_dies_in_the_middle_costs_a_line_and_the_upload_brings_the_rest_later(
    server, tmp_path, monkeypatch, capfd, trouble
):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
    with open_run(tmp_path, mode="online") as run:
        for step in (10, 20):
            run.log({LOSS: step / 10}, step=step)
        wait_for(lambda: arrived(server), lambda rows: rows == 1)
        getattr(server, trouble)()
        run.log({LOSS: 3.0}, step=30)
        run.table("scores", [{"model": "kraken"}])
        run.log({LOSS: 4.0}, step=40)
    # The table is what waits for the server; nothing after it does.
    err = capfd.readouterr().err
    assert err.startswith("krakenlm: W&B could not log table scores")
    assert err.count("\n") == 1
    server.recover()
    tear_down()
    assert [folders.is_offline(folder) for folder in folders.unsent(tmp_path)] == [False, True]
    upload_all(tmp_path)
    # What had arrived before arrives a second time, as the same row of the same step; a request that hung may, too.
    found = counts(server, LOSS)
    assert set(losses(server)) == {(step, step / 10) for step in (10, 20, 30, 40)}
    assert (found[10], found[40]) == (2, 1)
    assert {found[20], found[30]} <= ({1} if trouble == "fail" else {1, 2})
    # Only the one of the offline folder, if W&B could not keep the first one.
    assert 1 <= len(tables(server)) <= 2


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
