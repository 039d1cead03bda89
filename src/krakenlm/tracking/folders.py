"""W&B's run folders on this disk: which have been sent, and what the ones that have not been sent hold."""

import contextlib
import glob
import itertools
import json
import os
import re
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


def being_written(found: Sequence[Path]) -> list[Path]:
    """Those of the folders whose file a process of this user on this machine has open for writing."""
    written = set(files_open_for_writing(".wandb"))
    return [folder for folder in found if os.path.realpath(records_file(folder)) in written]


def files_open_for_writing(ending: str) -> Iterable[str]:
    """Paths with this ending that a process has open for writing, as Linux tells them; other users' it does not."""
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            path = os.readlink(descriptor)
            if path.endswith(ending):
                state = Path(descriptor.replace("/fd/", "/fdinfo/")).read_text()
                if int(re.search(r"flags:\s*(\d+)", state)[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    yield path


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
    return rows_of((record for folder in found for record in records(folder)), step_key)


def rows_of(found: Iterable[dict], step_key: str) -> dict[int, dict[str, float]]:
    """The metrics that records hold for each step."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for record in found:
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


def cover(held: Mapping[int, Mapping], rows: Mapping[int, Mapping]) -> bool:
    """Whether all metrics of all `rows` are in the rows `held`."""
    return all(row.keys() <= held.get(step, {}).keys() for step, row in rows.items())


def needless(found: Sequence[Path], step_key: str) -> list[Path]:
    """Those of a run's folders, oldest first, that need no upload: all that the server lacks of each is in another.

    An online process begins its folder with the rows that the server lacks of the online folders before it. Killed
    behind them, it has left them twice; killed among them, a part of them.
    """
    online = [folder for folder in found if not is_offline(folder)]
    held = {folder: content(folder, step_key) for folder in online} if len(online) > 1 else {}
    dropped: list[Path] = []
    for earlier, later in itertools.combinations(online, 2):
        if earlier in dropped or later in dropped:
            continue
        (old_rows, old_names), (new_rows, new_names) = held[earlier], held[later]
        # What comes before the first row that was taken over had arrived.
        lacking = {step: row for step, row in old_rows.items() if step >= min(new_rows, default=step)}
        if cover(new_rows, lacking) and old_names <= new_names:
            dropped.append(earlier)
        elif cover(old_rows, new_rows) and new_names <= old_names:
            dropped.append(later)
    return dropped


def content(folder: Path, step_key: str) -> tuple[dict[int, dict[str, float]], set[str]]:
    """A folder's metrics for each step, and the names of all else that it holds.

    That is artifacts, and what values without a step, tables, charts and the summary are called.
    """
    found = records(folder)
    rows, names = rows_of(found, step_key), set()
    for record in found:
        if record["type"] == "history":
            values = record["history"]["item"]
            names |= values.keys() - (metrics(values, step_key) if step_key in values else {}).keys()
        elif record["type"] == "summary":
            names |= record["summary"].get("update", {}).keys()
        elif record["type"] == "artifact":
            names.add(record["artifact"]["name"])
    # The summary has the newest of each metric, too.
    names -= {step_key, *(name for row in rows.values() for name in row)}
    return rows, {name for name in names if not name.startswith("_")}
