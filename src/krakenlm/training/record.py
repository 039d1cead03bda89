"""What a training run says about itself: its loss curve (which travels in checkpoints) and its progress on stderr."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from krakenlm.errors import InputError
from krakenlm.training.checkpoints import damage, saved
from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import validation_starts

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_REDRAWS = 0.2


class Record(Callback):
    """Collects the curve, hands it to the loggers, and stops a run whose numbers are no longer finite.

    A step's loss is that before its update; a step's validation loss is that after it.
    """

    def __init__(self, recipe: Recipe, validation_tokens: np.ndarray, block_size: int, checkpoints: Path) -> None:
        self.recipe, self.validation_tokens, self.block_size = recipe, validation_tokens, block_size
        self.checkpoints = checkpoints
        self.curve: list[dict] = []
        self.validation: list[dict] = []
        self.earlier_seconds = 0.0  # of the processes before this one, up to the checkpoint
        self.started = 0.0
        self.first_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "validation": self.validation, "seconds": self.total_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.validation = state["curve"], state["validation"]
        self.earlier_seconds = state["seconds"]

    def total_seconds(self) -> float:
        return self.earlier_seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def validation_tokens_seen(self) -> int:
        """How many tokens each validation loss is a mean over."""
        starts = validation_starts(len(self.validation_tokens), self.block_size, self.recipe.validation_windows)
        return len(starts) * self.block_size

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.started = time.perf_counter()
        self.first_step = trainer.global_step
        self.progress = Progress(self.recipe, self.first_step, self.block_size) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.recipe.accumulation:
            return
        recipe, step = self.recipe, trainer.global_step - 1
        # Before a checkpoint too, so that none is written of weights that have gone bad.
        if recipe.logs(step) or recipe.validates(step) or recipe.saves(step):
            self.take(trainer, module, step)
        if recipe.validates(step):
            loss = module.validation_loss(self.validation_tokens, self.block_size)
            self.validation.append({"step": step, "loss": loss})
            log(trainer, step, {"validation/loss": loss, "validation/perplexity": perplexity(loss)})
        if self.progress:
            self.progress.show(step, self.curve[-1]["loss"])

    def take(self, trainer: Any, module: Any, step: int) -> None:
        """Read the updates since the last reading; keep those that are to be logged."""
        values = module.take_pending()
        for earlier, (loss, norm) in enumerate(values, start=step - len(values) + 1):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.stop(earlier, loss, norm)
            if not self.recipe.logs(earlier):
                continue
            rate = self.recipe.rate(earlier)
            self.curve.append({"step": earlier, "loss": loss, "learning_rate": rate, "gradient_norm": norm})
            metrics = {
                "train/loss": loss,
                "train/perplexity": perplexity(loss),
                "train/learning_rate": rate,
                "train/gradient_norm": norm,
                "train/tokens_per_second": self.tokens_per_second(step),
            }
            log(trainer, earlier, metrics)

    def stop(self, step: int, loss: float, norm: float) -> None:
        last_good = next((str(path) for path in saved(self.checkpoints) if not damage(path)), "none yet")
        raise InputError(
            f"training: loss {loss} and gradient norm {norm} at step {step}, no longer finite; last good checkpoint: "
            f"{last_good}; lower training.learning_rate or raise training.warmup_steps"
        )

    def tokens_per_second(self, step: int) -> float:
        tokens = (step + 1 - self.first_step) * self.recipe.batch_sequences * self.block_size
        return tokens / (time.perf_counter() - self.started)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if self.progress:
            self.progress.close()


def log(trainer: Any, step: int, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite beyond what a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


class Progress:
    """A bar on a terminal; elsewhere, where a bar would fill a log, a plain line every few seconds."""

    def __init__(self, recipe: Recipe, first_step: int, block_size: int) -> None:
        self.steps, self.first_step = recipe.steps, first_step
        self.tokens_per_step = recipe.batch_sequences * block_size
        self.started = self.shown = time.perf_counter()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=recipe.steps + 1, initial=first_step, unit="step", desc="training", leave=True)
        elif first_step:
            print(f"training: going on at step {first_step} of {recipe.steps}", file=sys.stderr, flush=True)

    def show(self, step: int, loss: float) -> None:
        """Say that update `step` is done; `loss` is the last one read."""
        now = time.perf_counter()
        pause = SECONDS_BETWEEN_REDRAWS if self.bar is not None else SECONDS_BETWEEN_LINES
        if now - self.shown < pause and step < self.steps:
            return
        self.shown = now
        done = step + 1 - self.first_step
        tokens_per_second = done * self.tokens_per_step / (now - self.started)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
            self.bar.update(step + 1 - self.bar.n)
            return
        left = (self.steps - step) * (now - self.started) / done
        print(
            f"training: step {step} of {self.steps}, loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, "
            f"{duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """`3 d 4 h`, `2 h 5 min`, `3 min 20 s` or `12 s`."""
    seconds = round(seconds)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
