"""W&B's run folders on this disk: which have been sent, and what the ones that have not been sent hold."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

# Of a file whose process was killed before it wrote anything else.
HEADER_BYTES = 7


def records_file(folder: Path) -> Path:
    """The file of a run folder that holds everything; `run-<id>.wandb`."""
    return next(iter(folder.glob("run-*.wandb")), folder / "none")


def run_folders(directory: Path, run: str = "*") -> list[Path]:
    """The folders below `directory`/wandb, oldest first; all runs', or one's."""
    found = [*directory.glob(f"wandb/run-*-{run}"), *directory.glob(f"wandb/offline-run-*-{run}")]
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def unsent(directory: Path, run: str = "*") -> list[Path]:
    """Those of the folders that hold something and that W&B has not got."""
    return [f for f in run_folders(directory, run) if not sent_marker(f).exists() and holds_records(f)]


def holds_records(folder: Path) -> bool:
    file = records_file(folder)
    return file.exists() and file.stat().st_size > HEADER_BYTES


def mark_sent(found: Sequence[Path]) -> None:
    """Keep W&B's own `wandb sync`, and ours, from sending these folders again."""
    for folder in found:
        if records_file(folder).exists():
            sent_marker(folder).touch()


def sent_marker(folder: Path) -> Path:
    """The empty file by which W&B's own `wandb sync` knows a run that needs no upload."""
    file = records_file(folder)
    return file.with_name(file.name + ".synced")


def run_id(folder: Path) -> str:
    return records_file(folder).stem.removeprefix("run-")


def is_offline(folder: Path) -> bool:
    return folder.name.startswith("offline-")


def records(folder: Path) -> list[dict]:
    """What a run folder holds, as W&B's own reader reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(records_file(folder))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def logged(found: Sequence[Path], step_key: str) -> dict[int, set[str]]:
    """The names of what run folders hold for each step."""
    names: dict[int, set[str]] = defaultdict(set)
    for record in (record for folder in found for record in records(folder)):
        values = record["history"]["item"] if record["type"] == "history" else {}
        if step_key in values:
            names[int(values[step_key])].update(values)
    return names
