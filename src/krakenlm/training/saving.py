"""When a run saves: at the recipe's steps and minutes, at its best validation loss, and on SIGTERM."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint

from krakenlm import models
from krakenlm.files import copy, write_json
from krakenlm.training.checkpoints import prune
from krakenlm.training.recipe import Recipe
from krakenlm.training.record import Record

# What a shell reports of a process that SIGTERM has ended.
TERMINATED = 128 + signal.SIGTERM


class Agreement:
    """Yes or no, asked of all ranks on the CPU, so that no GPU is waited for."""

    def __init__(self, world: int) -> None:
        self.group = dist.new_group(backend="gloo") if world > 1 else None

    def any(self, answers: Sequence[bool]) -> list[bool]:
        """For each question, whether some rank says yes; every rank has to ask."""
        if self.group is None:
            return list(answers)
        values = torch.tensor(answers, dtype=torch.int32)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values.bool().tolist()


class Checkpoints(Checkpoint):
    """Saves under `directory` at the recipe's steps and minutes and on SIGTERM, and keeps the last two.

    After SIGTERM the update under way is finished and saved, and the process ends with status 143 (the first rank's;
    the others' is 0, since one bad status is enough for whoever started them).
    """

    def __init__(self, directory: Path, recipe: Recipe, identity: str, record: Record) -> None:
        self.directory, self.recipe, self.identity, self.record = directory, recipe, identity, record
        self.terminated = False

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.agreement, self.saved_at = Agreement(trainer.world_size), time.monotonic()
        # In place of Lightning's handler, which calls a collective from inside the signal: beside those under way that
        # is a deadlock. Lightning puts back what was there before its own.
        signal.signal(signal.SIGTERM, self.note_sigterm)

    def note_sigterm(self, number: int, frame: Any) -> None:
        self.terminated = True

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.recipe.accumulation:
            return
        step = trainer.global_step - 1
        overdue = time.monotonic() - self.saved_at >= 60 * self.recipe.checkpoint_every_minutes
        terminated, overdue = self.agreement.any([self.terminated, overdue])
        if not (terminated or overdue or self.recipe.saves(step)):
            return
        self.record.take(trainer, module, step)
        # Every rank takes part; the first one writes.
        path = self.directory / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path)
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            prune(self.directory, trainer.global_step)
        if terminated and step < self.recipe.steps:
            if trainer.is_global_zero:
                print(f"training: SIGTERM; saved {path} after step {step}; run again to go on", file=sys.stderr)
            raise SystemExit(TERMINATED if trainer.is_global_zero else 0)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity


class BestModel(Callback):
    """Keeps the model of the lowest validation loss in `directory`, as a model folder; it comes after Record."""

    def __init__(self, directory: Path, recipe: Recipe, tokenizer: Path, record: Record) -> None:
        self.directory, self.recipe, self.tokenizer, self.record = directory, recipe, tokenizer, record

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step - 1
        if (batch_idx + 1) % self.recipe.accumulation or not self.recipe.validates(step):
            return
        newest = self.record.validation[-1]
        if trainer.is_global_zero and newest["loss"] == min(point["loss"] for point in self.record.validation):
            copy(self.tokenizer, self.directory / "tokenizer.json")
            models.save_model(module.network, self.directory)
            write_json(self.directory / "metrics.json", {"step": step, "validation_loss": newest["loss"]})
