"""Training end to end at the smallest size: exact, resumable, and never another run's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.text.store import tokenize
from krakenlm.text.tokenizer import train_tokenizer
from krakenlm.training import run
from krakenlm.training.checkpoints import saved
from krakenlm.training.record import Record

MODEL = {"architecture": "kraken", "degree": 2, "n_layer": 2, "n_head": 2, "width": 16, "block_size": 16}
RECIPE = {
    "steps": 12,
    "batch_sequences": 4,
    "micro_batch": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "final_learning_rate_share": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "precision": "32-true",
    "compile": False,
    "fused": True,
    "gpus": 0,
    "threads": 1,
    "log_every_steps": 1,
    "checkpoint_every_steps": 4,
    "validate_every_steps": 4,
    "validation_windows": 4,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(tokens folder, tokenizer.json) of a few hundred short documents."""
    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus"
    corpus.mkdir()
    for split, numbers in {"train": range(300), "val": range(300, 340)}.items():
        lines = [json.dumps({"text": f"The number {n} comes before the number {n + 1}."}) for n in numbers]
        (corpus / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (corpus / "corpus.json").write_text(json.dumps({"source": "files", "data": "numbers"}))
    train_tokenizer(corpus, 300, folder / "tokenizer.json")
    tokenize(corpus, folder / "tokenizer.json", folder / "tokens")
    return folder / "tokens", folder / "tokenizer.json"


def train(text, out, **changes):
    run.train(*text, MODEL, RECIPE | changes, 0, out)


def untimed(out):
    metrics = json.loads((out / "metrics.json").read_text())
    metrics.pop("timings")
    metrics.pop("hardware")
    return metrics, (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(text, out)
    return out


def test_the_same_seed_gives_the_same_curve_and_the_same_weights_to_the_last_bit(text, undisturbed, tmp_path):
    train(text, tmp_path)
    assert untimed(tmp_path) == untimed(undisturbed)


def test_a_run_of_n_steps_makes_n_plus_one_updates_and_the_first_changes_nothing(text, undisturbed):
    metrics, _ = untimed(undisturbed)
    assert [point["step"] for point in metrics["curve"]] == list(range(13))
    assert metrics["curve"][0]["learning_rate"] == 0
    assert metrics["curve"][2]["learning_rate"] == pytest.approx(1e-2)
    assert metrics["curve"][12]["learning_rate"] == pytest.approx(1e-3)
    assert metrics["tokens_seen"] == 13 * 4 * 16
    assert metrics["curve"][-1]["loss"] < metrics["curve"][0]["loss"] - 0.5


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(text, undisturbed, tmp_path, monkeypatch):
    class PowerCut(Exception):
        pass

    on_end = Record.on_train_batch_end

    def cut(self, trainer, *rest):
        on_end(self, trainer, *rest)
        if trainer.global_step == 7:
            raise PowerCut

    monkeypatch.setattr(Record, "on_train_batch_end", cut)
    with pytest.raises(PowerCut):
        train(text, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000004.ckpt"]
    train(text, tmp_path)
    assert untimed(tmp_path) == untimed(undisturbed)
    assert json.loads((tmp_path / "metrics.json").read_text())["timings"]["resumed_at_step"] == 4


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_taken(text, undisturbed, tmp_path, capfd):
    train(text, tmp_path)
    newest = saved(tmp_path / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-500])
    train(text, tmp_path)
    assert f"{newest}: damaged checkpoint" in capfd.readouterr().err
    assert untimed(tmp_path) == untimed(undisturbed)


def test_when_no_checkpoint_is_intact_the_run_stops_and_deletes_nothing(text, tmp_path):
    train(text, tmp_path)
    for path in saved(tmp_path / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="expected an intact checkpoint, found a damaged one"):
        train(text, tmp_path)
    assert len(saved(tmp_path / "checkpoints")) == 2


def test_another_runs_checkpoint_is_refused(text, tmp_path):
    train(text, tmp_path)
    with pytest.raises(InputError, match="expected a checkpoint of this text, tokenizer, model, recipe and seed"):
        train(text, tmp_path, learning_rate=2e-2)


def test_accumulation_changes_the_bits_but_not_the_mathematics(text, undisturbed, tmp_path):
    train(text, tmp_path, micro_batch=4)
    expected = [point["loss"] for point in untimed(undisturbed)[0]["curve"]]
    assert [point["loss"] for point in untimed(tmp_path)[0]["curve"]] == pytest.approx(expected, rel=1e-3)


def test_a_loss_that_is_no_longer_finite_stops_the_run_with_the_step_and_the_last_good_checkpoint(
    text, tmp_path, monkeypatch
):
    from krakenlm.training import module

    loss, calls = module.next_token_loss, []

    def poisoned(network, windows_BW):
        calls.append(1)
        return loss(network, windows_BW) * (float("nan") if len(calls) > 14 else 1)

    monkeypatch.setattr(module, "next_token_loss", poisoned)
    with pytest.raises(InputError, match=r"training: loss nan .* at step \d+.*step-00000004\.ckpt"):
        train(text, tmp_path)


def test_what_was_trained_loads_and_has_the_tokens_vocabulary(text, undisturbed):
    module = models.load_model(undisturbed)
    assert module.config.vocab_size == 320
    assert module(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 320)


def test_too_short_a_text_and_a_wrong_vocabulary_are_refused(text, tmp_path):
    with pytest.raises(InputError, match=r"block_size: expected fewer tokens than .*\.bin has"):
        run.train(*text, MODEL | {"block_size": 100_000}, RECIPE, 0, tmp_path)
    with pytest.raises(InputError, match="vocab_size: expected 320, the vocabulary of the tokens, found 64"):
        run.train(*text, MODEL | {"vocab_size": 64}, RECIPE, 0, tmp_path)


def test_two_processes_share_a_batch_and_learn_what_one_learns(text, undisturbed, tmp_path):
    """DDP over gloo, from the command line: the global batch is the recipe's, whatever the number of devices."""
    tokens, tokenizer = text
    command = [Path(sys.executable).parent / "krakenlm", "train", "--tokens", tokens, "--tokenizer", tokenizer]
    command += ["--model", json.dumps(MODEL), "--recipe", json.dumps(RECIPE | {"devices": 2})]
    result = subprocess.run(
        [*map(str, command), "--seed", "0", "--out", str(tmp_path / "out")],
        env=os.environ | {"WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    expected = [point["loss"] for point in untimed(undisturbed)[0]["curve"]]
    assert [point["loss"] for point in untimed(tmp_path / "out")[0]["curve"]] == pytest.approx(expected, rel=1e-3)
