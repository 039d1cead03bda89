"""Runs as the tests open them, and what W&B's reader says of them."""

import subprocess
import sys
from pathlib import Path

import wandb

from krakenlm.tracking import folders
from krakenlm.tracking.run import start_run
from krakenlm.tracking.service import within
from krakenlm.tracking.upload import upload

KEY = "0123456789abcdef0123456789abcdef01234567"
SECONDS = 60  # what a process is waited for


def tear_down():
    """End W&B's own process, which writes the last of a run then."""
    within(SECONDS, wandb.teardown)


def open_run(directory, stage="evaluate", **changes):
    options = {
        "name": "model seed 0",
        "group": "tiny-abc",
        "parameters": {"model": {"width": 32}, "out": Path("folder")},
        "directory": directory,
    }
    return start_run(stage, **(options | changes))


def upload_all(directory):
    """`upload`, as in a process of its own."""
    tear_down()
    return upload(directory, minutes=1)


def inspect(directory, *flags):
    """What wandb's own reader says about the newest run folder in `directory`."""
    tear_down()
    folder = folders.unsent(directory)[-1]
    reader = Path(sys.executable).parent / "wandb"
    command = [reader, "leet", "inspect", *flags, "--json", folder]
    out = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
    return out.stdout.decode()
