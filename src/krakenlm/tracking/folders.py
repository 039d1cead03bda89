"""W&B's run folders on this disk: which have been sent, and what the ones that have not been sent hold."""

import json
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

# Of a file whose process was killed before it wrote anything else.
HEADER_BYTES = 7
# Records stand in blocks, cut into chunks: checksum, length and kind, then so many bytes (LevelDB's log format).
BLOCK_BYTES = 2**15
CHUNK_HEADER = struct.Struct("<IHB")
LAST_CHUNKS = (1, 4)  # a whole record, and the end of one
# As W&B's reader writes them, JSON having no word for them.
NOT_FINITE = ("Infinity", "-Infinity", "NaN")


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


def cut_off_unfinished(folder: Path) -> None:
    """Remove what a process that was killed had begun to write: for it W&B would refuse the folder after sending it."""
    path = records_file(folder)
    place, end, size = HEADER_BYTES, HEADER_BYTES, path.stat().st_size
    with open(path, "rb+") as file:
        while place + CHUNK_HEADER.size <= size:
            if (left := BLOCK_BYTES - place % BLOCK_BYTES) < CHUNK_HEADER.size:
                place += left
                continue
            file.seek(place)
            _, length, kind = CHUNK_HEADER.unpack(file.read(CHUNK_HEADER.size))
            place += CHUNK_HEADER.size + length
            if kind in LAST_CHUNKS and place <= size:
                end = place
        if end < size:
            file.truncate(end)


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


def logged(found: Sequence[Path], step_key: str) -> dict[int, dict[str, float]]:
    """The metrics, numbers with a name, that run folders hold for each step."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for record in (record for folder in found for record in records(folder)):
        values = record["history"]["item"] if record["type"] == "history" else {}
        if step_key in values:
            rows[int(values[step_key])].update(metrics(values, step_key))
    return rows


def metrics(values: dict, step_key: str) -> dict[str, float]:
    """A row's numbers without W&B's own and those that describe a table or chart (`<name>._type` and others)."""
    media = {name.removesuffix("._type") for name in values if name.endswith("._type")}
    return {
        name: float(value) if isinstance(value, str) else value
        for name, value in values.items()
        if (isinstance(value, int | float) or value in NOT_FINITE)
        and not name.startswith("_")
        and name != step_key
        and name.rpartition(".")[0] not in media
    }
