"""Checkpoints that are whole or absent, the newest intact one, and no other run's."""

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json, writing

KEPT = 2
STOPPED = "stopped.json"


class WholeFiles(TorchCheckpointIO):
    """Writes beside the checkpoint's place, flushes to the disk, then renames (Lightning's own writes in place)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(path) as temporary:
            torch.save(checkpoint, temporary)


def updates_done(path: Path) -> int:
    """Number of updates in a checkpoint, which its name says."""
    return int(path.stem.removeprefix("step-"))


def saved(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    return sorted(directory.glob("step-*.ckpt"), key=updates_done, reverse=True)


def prune(directory: Path, newest: int) -> None:
    """Remove all but the last two up to update `newest`, and what writers that were killed left unfinished.

    What lies beyond `newest` was found damaged on resuming.
    """
    beyond = [path for path in saved(directory) if updates_done(path) > newest]
    for path in beyond + saved(directory)[len(beyond) + KEPT :] + list(directory.glob(".step-*.part")):
        path.unlink()


def damage(path: Path) -> str:
    """What is wrong with a checkpoint file, '' if nothing: every record is read and its checksum compared."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
        if record is None:
            header(path)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return f"record {record} does not match its checksum" if record else ""


def header(path: Path) -> tuple[str, int]:
    """A checkpoint's identity and its number of updates; tensors stay on the disk."""
    checkpoint = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    return checkpoint["identity"], checkpoint["global_step"]


def newest_intact(directory: Path, identity: str) -> tuple[Path | None, int]:
    """The checkpoint to go on from and the updates it has behind it; (None, 0) where there is none.

    Each damaged one is named on stderr and the one before it is tried.

    Raises:
        InputError: there are checkpoints but none is intact, or the newest intact one is another run's.
    """
    damaged = []
    for path in saved(directory):
        if problem := damage(path):
            print(f"krakenlm: {path}: damaged checkpoint ({problem}); trying the one before", file=sys.stderr)
            damaged.append(path)
            continue
        found, step = header(path)
        if found != identity:
            raise InputError(
                f"{path}: expected a checkpoint of this text, tokenizer, model, recipe and seed ({identity}), found "
                f"another's ({found}); choose another --out, or delete {directory} to train anew"
            )
        return path, step
    if damaged:
        raise InputError(
            f"{damaged[0]}: expected an intact checkpoint, found a damaged one and none intact before it; "
            f"delete {directory} to train from the start"
        )
    return None, 0


def note_stop(directory: Path, step: int, found: str) -> str:
    """Note beside the checkpoints that `found` stopped the run at `step`; returns the whole story."""
    last_good = next((path for path in saved(directory) if not damage(path)), "none yet")
    story = f"{found} at step {step}, no longer finite; last good checkpoint: {last_good}"
    write_json(directory / STOPPED, {"step": step, "story": story})
    return story


def refuse_stopped(directory: Path) -> None:
    """Refuse to go on with a run that its own numbers stopped: a scheduler's retries would pay for the same end again.

    Raises:
        InputError: with what stopped it.
    """
    path = directory / STOPPED
    if path.exists():
        raise InputError(
            f"{path}: an earlier attempt found {read_json(path)['story']}; lower training.learning_rate or raise "
            "training.warmup_steps, or delete this file to try again from that checkpoint"
        )
