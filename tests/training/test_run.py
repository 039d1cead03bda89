"""Training end to end at the smallest size: exact, resumable, and never another run's."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from small_run import MODEL, RECIPE, train, untimed

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.training import record, run
from krakenlm.training.checkpoints import saved
from krakenlm.training.record import Record


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


def test_the_record_of_a_run_says_with_which_recipe_and_on_which_tokens(text, undisturbed):
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    assert metrics["recipe"].items() >= {key: RECIPE[key] for key in ("steps", "learning_rate", "clip")}.items()
    assert metrics["tokens"] == json.loads((text[0] / "manifest.json").read_text())


def train_until_a_power_cut(text, out, logger=None):
    """Train up to step 6; the checkpoint is of step 3."""

    class PowerCut(Exception):
        pass

    on_end = Record.on_train_batch_end

    def cut(self, trainer, *rest):
        on_end(self, trainer, *rest)
        if trainer.global_step == 7:
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "on_train_batch_end", cut)
        with pytest.raises(PowerCut):
            run.train(*text, MODEL, RECIPE, 0, out, logger=logger)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(text, undisturbed, tmp_path):
    train_until_a_power_cut(text, tmp_path)
    assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000004.ckpt"]
    train(text, tmp_path)
    assert untimed(tmp_path) == untimed(undisturbed)
    assert json.loads((tmp_path / "metrics.json").read_text())["timings"]["resumed_at_step"] == 4


def test_a_run_that_goes_on_logs_again_all_that_was_logged_up_to_its_checkpoint(text, tmp_path):
    first, second = Seen(), Seen()
    train_until_a_power_cut(text, tmp_path, first)
    run.train(*text, MODEL, RECIPE, 0, tmp_path, logger=second)
    assert {step: second.metrics[step] for step in range(4)} == {step: first.metrics[step] for step in range(4)}
    assert {step: set(second.metrics[step]) for step in first.metrics} == {s: set(m) for s, m in first.metrics.items()}
    assert "train/peak_memory_gb" in second.metrics[0]
    assert "validation/loss" in second.metrics[0]


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


def test_a_checkpoint_is_known_whether_or_not_its_tokens_name_their_tokenizer():
    older = {"vocabulary": 300, "splits": {"train": {"sha256": "a"}}}
    recipe = {"steps": 3}
    expected = run.full_identity("here", SimpleNamespace(manifest=older), MODEL, recipe, 0)
    newer, other = older | {"tokenizer": "b"}, older | {"splits": {"train": {"sha256": "c"}}}
    assert run.full_identity("here", SimpleNamespace(manifest=newer), MODEL, recipe, 0) == expected
    assert run.full_identity("here", SimpleNamespace(manifest=other), MODEL, recipe, 0) != expected


def test_accumulation_changes_the_bits_but_not_the_mathematics(text, undisturbed, tmp_path):
    train(text, tmp_path, micro_batch=4)
    expected = [point["loss"] for point in untimed(undisturbed)[0]["curve"]]
    assert [point["loss"] for point in untimed(tmp_path)[0]["curve"]] == pytest.approx(expected, rel=1e-3)


def test_a_loss_that_is_no_longer_finite_stops_the_run_with_the_step_and_the_last_good_checkpoint(
    text, undisturbed, tmp_path, monkeypatch
):
    from krakenlm.training import module

    loss, calls = module.next_token_loss, []

    def poisoned(network, windows_BW):
        calls.append(1)
        return loss(network, windows_BW) * (float("nan") if len(calls) > 14 else 1)

    monkeypatch.setattr(module, "next_token_loss", poisoned)
    with pytest.raises(InputError, match=r"training: loss nan .* at step 5.*step-00000004\.ckpt"):
        train(text, tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"stopped\.json: an earlier attempt found loss nan .* at step 5"):
        train(text, tmp_path)
    (tmp_path / "checkpoints" / "stopped.json").unlink()
    train(text, tmp_path)
    assert untimed(tmp_path) == untimed(undisturbed)


def test_a_gradient_that_overflows_stops_the_run_though_the_loss_is_finite(text, tmp_path, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_

    def overflowing(parameters, *rest):
        parameters = list(parameters)
        parameters[0].grad[0, 0] = float("inf")
        return clip(parameters, *rest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflowing)
    with pytest.raises(InputError, match=r"gradient norm inf at step 0, .*last good checkpoint: none yet"):
        train(text, tmp_path)


def test_the_model_of_the_lowest_validation_loss_is_kept_and_loads(text, tmp_path):
    train(text, tmp_path, learning_rate=1.0, warmup_steps=6, validate_every_steps=1)  # it diverges after a while
    losses = {point["step"]: point["loss"] for point in untimed(tmp_path)[0]["validation"]}
    best = json.loads((tmp_path / "checkpoints" / "best" / "metrics.json").read_text())
    assert best["step"] == min(losses, key=losses.get) < 12
    assert best["validation_loss"] == min(losses.values())
    kept, last = (models.load_model(folder) for folder in (tmp_path / "checkpoints" / "best", tmp_path))
    assert not torch.equal(kept.embedding.tokens, last.embedding.tokens)


def test_minutes_save_where_steps_do_not_and_only_the_last_two_stay(text, undisturbed, tmp_path):
    train(text, tmp_path, checkpoint_every_minutes=1e-9, checkpoint_every_steps=1000)
    assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000013.ckpt", "step-00000012.ckpt"]
    assert untimed(tmp_path) == untimed(undisturbed)


def test_bfloat16_with_fused_adamw_and_clipping_learns_what_float32_learns_and_keeps_float32_weights(
    text, undisturbed, tmp_path, monkeypatch
):
    # Processors without bfloat16 take long over it.
    monkeypatch.setattr(record, "matrix_rate", lambda device, dtype: 1e12)
    train(text, tmp_path, precision="bf16-mixed", fused=True)
    expected = [point["loss"] for point in untimed(undisturbed)[0]["curve"]]
    losses = [point["loss"] for point in untimed(tmp_path)[0]["curve"]]
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected
    assert {parameter.dtype for parameter in models.load_model(tmp_path).parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_run_learns_what_one_learns_op_by_op(text, undisturbed, tmp_path):
    train(text, tmp_path, compile=True)
    expected = [point["loss"] for point in untimed(undisturbed)[0]["curve"]]
    assert [point["loss"] for point in untimed(tmp_path)[0]["curve"]] == pytest.approx(expected, rel=1e-3)


def test_gpus_that_are_not_there_and_tasks_that_are_not_devices_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"training.gpus: expected at most the 1 GPUs of this machine, found 2"):
        train(text, tmp_path, gpus=2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(InputError, match=r"training.devices: expected one per task of srun \(3\), found 2"):
        train(text, tmp_path, devices=2)


class Seen(Logger):
    """A logger that keeps what it is given, by step."""

    name, version = "seen", "0"

    def __init__(self):
        super().__init__()
        self.metrics = {}

    def log_hyperparams(self, *arguments, **named):
        pass

    def log_metrics(self, metrics, step=None):
        self.metrics.setdefault(step, {}).update(metrics)


def test_speed_share_of_the_peak_loss_gradient_norm_learning_rate_and_time_left_are_logged_and_shown(
    text, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(record, "SECONDS_BETWEEN_LINES", 0.0)
    seen = Seen()
    run.train(*text, MODEL, RECIPE | {"log_every_steps": 3}, 0, tmp_path, logger=seen)
    curve = {point["step"]: point for point in untimed(tmp_path)[0]["curve"]}
    logged = {step: values for step, values in seen.metrics.items() if "train/loss" in values}
    assert set(logged) == set(curve) == {0, 3, 6, 9, 12}
    for step, values in logged.items():
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert values[f"train/{name}"] == curve[step][name]
        assert values["train/tokens_per_second"] > 0
        assert 0 < values["train/share_of_matrix_rate"] < 1
        assert (values["train/seconds_left"] == 0) is (step == 12)
        assert 0.01 < values["train/peak_memory_gb"] < 100
    last = [line for line in capfd.readouterr().err.splitlines() if line.startswith("training: step")][-1]
    point = curve[12]
    shown = f"loss {point['loss']:.3f}, gradient norm {point['gradient_norm']:.2f}, learning rate 1.00e-03"
    assert re.fullmatch(rf"training: step 12 of 12, {shown}, [\d,]+ tokens/s, \d+% of the matrix rate, 0 s left", last)


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")]
)
def test_what_is_left_is_said_in_its_two_largest_units(seconds, words):
    assert record.duration(seconds) == words


def test_what_was_trained_loads_and_has_the_tokens_vocabulary(text, undisturbed):
    module = models.load_model(undisturbed)
    assert module.config.vocab_size == 320
    assert module(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 320)


def test_tokens_that_are_not_what_was_written_are_refused_before_training(text, tmp_path):
    tokens = shutil.copytree(text[0], tmp_path / "tokens")
    content = bytearray((tokens / "train.bin").read_bytes())
    content[100] ^= 1
    (tokens / "train.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.bin: expected the content whose checksum is in manifest\.json"):
        train((tokens, text[1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_short_a_text_and_a_wrong_vocabulary_are_refused(text, tmp_path):
    with pytest.raises(InputError, match=r"block_size: expected fewer tokens than .*\.bin has"):
        run.train(*text, MODEL | {"block_size": 100_000}, RECIPE, 0, tmp_path)
    with pytest.raises(InputError, match="vocab_size: expected 320, the vocabulary of the tokens, found 64"):
        run.train(*text, MODEL | {"vocab_size": 64}, RECIPE, 0, tmp_path)
