"""The trainer on a GPU: it learns, in float32 and in bfloat16, compiled and not, and goes on where it was cut off."""

import json

import pytest
import torch
from gpu_cases import by_path

from krakenlm import models
from krakenlm.training.calibration import training_rate
from krakenlm.training.checkpoints import saved
from krakenlm.training.recipe import Recipe
from krakenlm.training.record import Record

small_run = by_path("tests/training/small_run.py")
ON_GPU = {"gpus": 1, "precision": "bf16-mixed", "steps": 30, "checkpoint_every_steps": 10}


def learn(text, out, **changes):
    small_run.train(text, out, **ON_GPU | changes)
    return small_run.untimed(out)[0]


def losses(metrics):
    return [point["loss"] for point in metrics["curve"]]


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """metrics.json of a run in bfloat16."""
    return learn(text, tmp_path_factory.mktemp("undisturbed"))


def test_bfloat16_learns_what_float32_on_a_cpu_learns(text, undisturbed, tmp_path):
    expected = learn(text, tmp_path, gpus=0, precision="32-true")
    assert losses(undisturbed)[-1] < losses(undisturbed)[0] - 1, losses(undisturbed)
    assert losses(undisturbed) == pytest.approx(losses(expected), rel=0.05)
    for found, wanted in zip(undisturbed["validation"], expected["validation"], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=0.05)


def test_float32_learns_what_it_learns_on_a_cpu(text, tmp_path):
    expected = learn(text, tmp_path / "cpu", gpus=0, precision="32-true", fused=False)
    found = learn(text, tmp_path / "gpu", precision="32-true", fused=False)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-2)


def test_a_compiled_run_learns_what_one_learns_op_by_op(text, undisturbed, tmp_path):
    torch.compiler.reset()
    metrics = learn(text, tmp_path, compile=True)
    assert losses(metrics) == pytest.approx(losses(undisturbed), rel=0.05)
    assert saved(tmp_path / "checkpoints")


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(text, undisturbed, tmp_path, monkeypatch, fused):
    class PowerCut(Exception):
        pass

    on_end = Record.on_train_batch_end

    def cut(self, trainer, *rest):
        on_end(self, trainer, *rest)
        if trainer.global_step == 17:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Record, "on_train_batch_end", cut)
        with pytest.raises(PowerCut):
            learn(text, tmp_path, fused=fused)
    assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000010.ckpt"]
    metrics = learn(text, tmp_path, fused=fused)
    assert json.loads((tmp_path / "metrics.json").read_text())["timings"]["resumed_at_step"] == 10
    assert losses(metrics) == pytest.approx(losses(undisturbed), rel=0.05)
    for folder in (tmp_path, tmp_path / "checkpoints" / "best"):
        assert {each.dtype for each in models.load_model(folder).parameters()} == {torch.float32}


def test_the_rate_of_a_short_training_is_measured():
    sizes = small_run.MODEL | {"vocab_size": 320}
    assert training_rate(sizes, Recipe.from_dict(small_run.RECIPE | ON_GPU)) > 0
