import json
import os
import time

from tracked_runs import KEY, inspect, open_run, tear_down

from krakenlm.tracking import folders, service
from krakenlm.tracking import run as tracking
from krakenlm.tracking.ledger import Ledger
from krakenlm.tracking.run import STEP
from krakenlm.version import code_version


def test_an_offline_run_keeps_config_metrics_table_and_summary(tmp_path):
    with open_run(tmp_path, mode="offline") as run:
        run.log({"train/loss": 3.5}, step=10)
        run.log({"train/loss": 2.5}, step=20)
        run.table("perplexity", [{"model": "standard", "loss": 2.5}, {"model": "kraken", "loss": "", "seed": 1}])
        run.summary({"best": 2.25})
    summary = json.loads(inspect(tmp_path, "--summary"))
    assert summary["name"] == "model seed 0"
    config = summary["config"]
    assert config.pop("code")["version"]
    assert config == {"model": {"width": 32}, "out": "folder"}
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


def test_a_variable_that_is_set_to_nothing_is_as_one_that_is_not_set(tmp_path, monkeypatch, capfd):
    for name in ("MODE", "API_KEY", "BASE_URL", "PROJECT"):
        monkeypatch.setenv(f"WANDB_{name}", "")
    with open_run(tmp_path) as run:
        assert run.wandb_run.project == "krakenlm"
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert capfd.readouterr() == ("", "")


def test_what_the_machine_does_meanwhile_and_the_code_that_ran_are_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    with open_run(tmp_path, mode="offline") as run:
        code = run.wandb_run.config["code"]
        time.sleep(1)
    tear_down()
    found = [record for folder in folders.unsent(tmp_path) for record in folders.records(folder)]
    measured = {name for record in found if record["type"] == "stats" for name in record["stats"]["item"]}
    assert {"cpu", "memory_percent"} & measured, measured
    assert code == code_version()


def test_a_login_in_netrc_counts_as_a_key(tmp_path):
    assert service.keys() == []
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + KEY, encoding="utf-8")
    (tmp_path / "netrc").chmod(0o600)
    assert service.keys() == [KEY]


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
    monkeypatch.setattr(tracking, "INIT_SECONDS", 1.0)
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

        def fail(*_, **__):
            raise OSError(f"connection lost with {KEY}\nand more")

        os.environ["WANDB_API_KEY"] = KEY
        real, run.wandb_run.log = run.wandb_run, fail
        run.log({"train/loss": 1.0}, step=0)
        run.log({"train/loss": 1.0}, step=1)
        del os.environ["WANDB_API_KEY"]
        real.finish()
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("krakenlm: W&B could not log: OSError: connection lost with <key> and more; going on without")


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


def test_a_rerun_with_other_parameters_is_a_new_run_that_names_the_earlier_one(tmp_path):
    with open_run(tmp_path, mode="offline") as run:
        first = run.wandb_run.id
    with open_run(tmp_path, mode="offline", parameters={"model": {"width": 33}}) as run:
        assert run.wandb_run.id != first
        assert run.wandb_run.config["earlier_run"] == first


def test_a_resumed_offline_run_leaves_out_the_metrics_that_its_first_part_has(tmp_path):
    with open_run(tmp_path, mode="offline") as run:
        run.log({"train/loss": 3.0}, step=10)
        run.log({"train/loss": 2.0}, step=20)
    tear_down()  # as the end of a process does, before another resumes the run
    with open_run(tmp_path, mode="offline") as run:
        run.log({"train/loss": 3.0}, step=10)
        run.log({"train/loss": 2.0, "validation/loss": 2.5}, step=20)
        run.log({"train/loss": 1.0}, step=30)
    tear_down()
    found = folders.unsent(tmp_path)
    first, second = (folders.logged([folder], STEP) for folder in found)
    names = [{step: {n for n in row if n.endswith("loss")} for step, row in part.items()} for part in (first, second)]
    assert names == [{10: {"train/loss"}, 20: {"train/loss"}}, {20: {"validation/loss"}, 30: {"train/loss"}}]


def test_a_table_leads_back_to_its_corpus(tmp_path):
    for name in ("corpus", "tokens", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "checkpoints").mkdir()
    (tmp_path / "model" / "checkpoints" / "last.ckpt").write_bytes(b"state")
    (tmp_path / "perplexity.csv").write_text("model\n")
    chain = ["corpus", "tokens", "model", "perplexity.csv"]
    for source, result in zip([None, *chain], chain, strict=False):
        with open_run(tmp_path, stage=result, mode="offline") as run:
            if source:
                run.read(tmp_path / source)
            run.wrote(tmp_path / result, kind=result)
    ledger = Ledger(tmp_path)
    writers = {line["artifact"]: line["run"] for line in ledger.lines("wrote")}
    readers = {line["run"]: line["artifact"] for line in ledger.unlinked()}
    found = ["perplexity.csv"]
    while writers[found[-1]] in readers:
        found.append(readers[writers[found[-1]]])
    assert found == chain[::-1]
    tear_down()
    records = [record for folder in folders.unsent(tmp_path) for record in folders.records(folder)]
    logged = {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}
    artifact = logged["model"]
    contents = {item["path"]: item for item in artifact["manifest"]["contents"]}
    assert set(contents) == {"model.json", "model.safetensors"}
    assert contents["model.safetensors"]["ref"] == (tmp_path / "model" / "model.safetensors").as_uri()
