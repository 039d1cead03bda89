import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from krakenlm import tracking
from krakenlm.tracking import STEP, start_run

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    # W&B reads its environment once per process.
    wandb.teardown()


def open_run(directory, **changes):
    options = {
        "name": "model seed 0",
        "group": "tiny-abc",
        "parameters": {"model": {"width": 32}, "out": Path("folder")},
        "directory": directory,
    }
    return start_run("evaluate", **(options | changes))


def inspect(directory, *flags):
    """What wandb's own reader says about the one run folder in `directory`."""
    (folder,) = (directory / "wandb").glob("offline-run-*")
    reader = Path(sys.executable).parent / "wandb"
    out = subprocess.run([reader, "leet", "inspect", *flags, "--json", folder], capture_output=True, check=True)
    return out.stdout.decode()


def test_an_offline_run_keeps_config_metrics_table_and_summary(tmp_path):
    with open_run(tmp_path, mode="offline") as run:
        run.log({"train/loss": 3.5}, step=10)
        run.log({"train/loss": 2.5}, step=20)
        run.table("perplexity", [{"model": "standard", "loss": 2.5}, {"model": "kraken", "loss": "", "seed": 1}])
        run.summary({"best": 2.25})
    summary = json.loads(inspect(tmp_path, "--summary"))
    assert summary["name"] == "model seed 0"
    assert summary["config"] == {"model": {"width": 32}, "out": "folder"}
    assert summary["state"] == "finished"
    assert summary["summary"]["train/loss"] == 2.5
    assert summary["summary"]["best"] == 2.25
    assert summary["summary"]["perplexity"]["nrows"] == 2
    history = [json.loads(line) for line in inspect(tmp_path).splitlines() if '"type":"history"' in line]
    text = json.dumps(history)
    assert STEP in text
    assert "3.5" in text


def test_auto_is_offline_without_a_key_and_says_nothing(tmp_path, capfd):
    with open_run(tmp_path):
        pass
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert capfd.readouterr() == ("", "")


def test_a_login_in_netrc_counts_as_a_key(tmp_path):
    assert not tracking.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + KEY, encoding="utf-8")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking.has_key()


def test_other_parameters_make_another_run_and_the_same_ones_the_same(tmp_path):
    def run_id(folder, **changes):
        with open_run(tmp_path / folder, mode="offline", **changes) as run:
            return run.wandb_run.id

    first = run_id("a")
    assert run_id("b") == first
    assert run_id("c", parameters={"model": {"width": 33}}) != first


def test_a_server_that_is_not_there_costs_one_line_and_the_run_is_kept_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2.0)
    with open_run(tmp_path, mode="online") as run:
        run.log({"train/loss": 3.5}, step=1)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "W&B could not start" in err
    assert KEY not in err
    assert json.loads(inspect(tmp_path, "--summary"))["summary"]["train/loss"] == 3.5
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written


def test_a_failure_in_the_middle_costs_one_line_and_the_stage_goes_on(tmp_path, capfd):
    with open_run(tmp_path, mode="offline") as run:

        def fail(*_):
            raise OSError(f"connection lost with {KEY}\nand more")

        os.environ["WANDB_API_KEY"] = KEY
        real, run.wandb_run.log = run.wandb_run, fail
        run.log({"train/loss": 1.0}, step=0)
        run.log({"train/loss": 1.0}, step=1)
        del os.environ["WANDB_API_KEY"]
        real.finish()
    err = capfd.readouterr().err
    assert err == "krakenlm: W&B could not log: OSError: connection lost with <key> and more; going on without\n"


def test_without_a_run_every_call_does_nothing(tmp_path):
    with open_run(tmp_path, mode="disabled") as run:
        run.log({"loss": 1.0}, step=1)
        run.table("t", [{"a": 1}])
        run.summary({"a": 1})
        assert run.lightning_logger() is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_of_a_training_has_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with open_run(tmp_path, mode="offline") as run:
        assert run.wandb_run is None


def test_a_lightning_logger_writes_to_the_same_run(tmp_path):
    with open_run(tmp_path, mode="offline") as run:
        run.lightning_logger().log_metrics({"train/loss": 1.25}, step=7)
    summary = json.loads(inspect(tmp_path, "--summary"))["summary"]
    assert (summary["train/loss"], summary[STEP]) == (1.25, 7)
