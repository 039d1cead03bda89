"""What a training run says about itself: its loss curve (which travels in checkpoints) and its progress on stderr."""

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from krakenlm.errors import InputError
from krakenlm.models.sizing import training_flops_per_token
from krakenlm.progress import SECONDS_BETWEEN_LINES, duration
from krakenlm.training.calibration import matrix_rate
from krakenlm.training.checkpoints import note_stop
from krakenlm.training.memory import peak_memory
from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import validation_starts

SECONDS_BETWEEN_REDRAWS = 0.2


class Record(Callback):
    """Collects the curve, hands it to the loggers, and stops a run whose numbers are no longer finite.

    A step's loss is that before its update; a step's validation loss is that after it. `model_config` is the model's
    configuration, `checkpoints` the folder where they are looked for when a run stops.
    """

    def __init__(self, recipe: Recipe, model_config: Mapping, validation_tokens: np.ndarray, checkpoints: Path) -> None:
        self.recipe, self.validation_tokens, self.checkpoints = recipe, validation_tokens, checkpoints
        self.block_size = model_config["block_size"]
        self.tokens_per_step = recipe.batch_sequences * self.block_size
        self.flops_per_token = training_flops_per_token(model_config)
        self.curve: list[dict] = []
        self.validation: list[dict] = []
        self.machine: dict[int, dict[str, float]] = {}  # what depends on it at each step of the curve, for the loggers
        self.earlier_seconds = 0.0  # of the processes before this one, up to the checkpoint
        self.started = 0.0
        self.first_step = 0

    def state_dict(self) -> dict[str, Any]:
        state = {"curve": self.curve, "validation": self.validation, "machine": self.machine}
        return state | {"seconds": self.total_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.validation = state["curve"], state["validation"]
        self.machine = state.get("machine", {})  # checkpoints of before it was kept lack it
        self.earlier_seconds = state["seconds"]

    def total_seconds(self) -> float:
        return self.earlier_seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def validation_tokens_seen(self) -> int:
        """How many tokens each validation loss is a mean over."""
        starts = validation_starts(len(self.validation_tokens), self.block_size, self.recipe.validation_windows)
        return len(starts) * self.block_size

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        # Before the model is on the device, so that the matrices find room there.
        dtype = torch.float32 if self.recipe.precision == "32-true" else torch.bfloat16
        device = trainer.strategy.root_device
        self.peak = matrix_rate(device, dtype) * trainer.world_size
        if device.type == "cuda":  # the matrices are no part of the training's memory
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.started = self.taken = time.perf_counter()
        self.first_step = self.next_step = trainer.global_step
        self.progress = Progress(self.recipe.steps, self.first_step) if trainer.is_global_zero else None
        self.replay(trainer)

    def replay(self, trainer: Any) -> None:
        """Hand all that was logged up to the checkpoint to the loggers, in order: a killed process may not have.

        A logger leaves out what it has.
        """
        points = [(point["step"], curve_metrics(point) | self.machine.get(point["step"], {})) for point in self.curve]
        points += [(point["step"], validation_metrics(point["loss"])) for point in self.validation]
        for step, metrics in sorted(points, key=lambda point: point[0]):
            log(trainer, step, metrics)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.recipe.accumulation:
            return
        recipe, step = self.recipe, trainer.global_step - 1
        # Before a checkpoint too, so that none is written of weights that have gone bad.
        if recipe.logs(step) or recipe.validates(step) or recipe.saves(step):
            self.take(trainer, module, step)
        if recipe.validates(step):
            loss = module.validation_loss(self.validation_tokens, self.block_size)
            if not math.isfinite(loss):
                self.stop(trainer, step, f"validation loss {loss}")
            self.validation.append({"step": step, "loss": loss})
            log(trainer, step, validation_metrics(loss))
        if self.progress and self.next_step > self.first_step:
            self.progress.show(step, self.curve[-1], self.speed, self.seconds_left)

    def take(self, trainer: Any, module: Any, step: int) -> None:
        """Read the updates since the last reading, up to `step`; keep those that are to be logged."""
        values = module.take_pending()
        if not values:
            return
        self.measure_speed(step)
        for earlier, (loss, norm) in enumerate(values, start=step - len(values) + 1):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.stop(trainer, earlier, f"loss {loss} and gradient norm {norm}")
            if not self.recipe.logs(earlier):
                continue
            rate = self.recipe.rate(earlier)
            self.curve.append({"step": earlier, "loss": loss, "learning_rate": rate, "gradient_norm": norm})
            self.machine[earlier] = self.machine_metrics(trainer.strategy.root_device)
            log(trainer, earlier, curve_metrics(self.curve[-1]) | self.machine[earlier])

    def measure_speed(self, step: int) -> None:
        """Tokens per second since the last reading, the share of the devices' matrix rate that their FLOPs are, and the
        seconds that are left at this process's pace so far, validation and checkpoints included."""
        now = time.perf_counter()
        tokens_per_second = (step + 1 - self.next_step) * self.tokens_per_step / (now - self.taken)
        self.taken, self.next_step = now, step + 1
        self.speed = (tokens_per_second, tokens_per_second * self.flops_per_token / self.peak)
        self.seconds_left = (self.recipe.steps - step) * (now - self.started) / (step + 1 - self.first_step)

    def machine_metrics(self, device: torch.device) -> dict[str, float]:
        return {
            "train/tokens_per_second": self.speed[0],
            "train/share_of_matrix_rate": self.speed[1],
            "train/seconds_left": self.seconds_left,
            "train/peak_memory_gb": peak_memory(device) / 1e9,
        }

    def stop(self, trainer: Any, step: int, found: str) -> None:
        story = note_stop(self.checkpoints, step, found) if trainer.is_global_zero else f"{found} at step {step}"
        raise InputError(f"training: {story}; lower training.learning_rate or raise training.warmup_steps")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if self.progress:
            self.progress.close()


def log(trainer: Any, step: int, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)


def curve_metrics(point: Mapping[str, float]) -> dict[str, float]:
    """A point of the curve as the loggers name it."""
    metrics = {f"train/{name}": point[name] for name in ("loss", "learning_rate", "gradient_norm")}
    return metrics | {"train/perplexity": perplexity(point["loss"])}


def validation_metrics(loss: float) -> dict[str, float]:
    return {"validation/loss": loss, "validation/perplexity": perplexity(loss)}


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite beyond what a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


class Progress:
    """A bar on a terminal; elsewhere, where a bar would fill a log, a plain line every few seconds."""

    def __init__(self, steps: int, first_step: int) -> None:
        self.steps, self.first_step = steps, first_step
        self.shown = time.perf_counter()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=steps + 1, initial=first_step, unit="step", desc="training", leave=True)
        elif first_step:
            print(f"training: going on at step {first_step} of {steps}", file=sys.stderr, flush=True)

    def show(self, step: int, point: Mapping[str, float], speed: tuple[float, float], left: float) -> None:
        """Say that update `step` is done, with the curve's last point, the speed and what is left as last read."""
        now = time.perf_counter()
        pause = SECONDS_BETWEEN_REDRAWS if self.bar is not None else SECONDS_BETWEEN_LINES
        if now - self.shown < pause and step < self.steps:
            return
        self.shown = now
        text = (
            f"loss {point['loss']:.3f}, gradient norm {point['gradient_norm']:.2f}, "
            f"learning rate {point['learning_rate']:.2e}, {speed[0]:,.0f} tokens/s, {speed[1]:.0%} of the matrix rate"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step + 1 - self.bar.n)
            return
        print(f"training: step {step} of {self.steps}, {text}, {duration(left)} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
