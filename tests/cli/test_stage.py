"""What stages share."""

import contextlib
import os
from pathlib import Path

from krakenlm.cli import stage
from krakenlm.cli.stage import writing_stage
from krakenlm.files import hold
from krakenlm.tracking import run as tracking


def test_a_further_process_of_a_training_takes_no_lock_and_has_a_run_that_does_nothing(tmp_path, monkeypatch):
    ends_with = []
    monkeypatch.setattr(stage, "die_with", ends_with.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "model"
    with hold(out, "train"), writing_stage("train", out) as run:
        run.summary({"loss": 1.0})
        assert run.lightning_logger() is None
    assert ends_with == [os.getppid()]
    assert not (tmp_path / "results").exists()


def test_what_a_stage_writes_beside_its_output_is_none_of_its_inputs(tmp_path, monkeypatch):
    read, wrote = [], []

    class Run:
        def read(self, path: Path) -> None:
            read.append(path)

        def wrote(self, path: Path, kind: str) -> None:
            wrote.append(path)

    out, beside, given = (tmp_path / name for name in ("ttft.csv", "parts.csv", "tokens"))
    monkeypatch.setattr(tracking, "start_run", lambda *words, **options: contextlib.nullcontext(Run()))
    monkeypatch.setattr(stage, "command_line", lambda: ({}, [out, beside, given]))
    with writing_stage("ttft", out, writes=[beside, None]):
        pass
    assert (read, wrote) == ([given], [out])
