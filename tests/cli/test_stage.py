"""What stages share."""

import os

from krakenlm.cli.stage import writing_stage
from krakenlm.files import hold
from krakenlm.inference import launch


def test_a_further_process_of_a_training_takes_no_lock_and_has_a_run_that_does_nothing(tmp_path, monkeypatch):
    ends_with = []
    monkeypatch.setattr(launch, "die_with", ends_with.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "model"
    with hold(out, "train"), writing_stage("train", out) as run:
        run.summary({"loss": 1.0})
        assert run.lightning_logger() is None
    assert ends_with == [os.getppid()]
    assert not (tmp_path / "results").exists()
