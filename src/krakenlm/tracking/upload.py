"""Sends what offline and broken-off runs have left on this disk, and ties the runs to the artifacts they read."""

import os
import subprocess
import sys
import time
from pathlib import Path

from krakenlm.errors import InputError
from krakenlm.files import claim
from krakenlm.tracking import folders
from krakenlm.tracking.ledger import LINKED, RUN, Ledger
from krakenlm.tracking.run import STEP, default_project, lock_path
from krakenlm.tracking.service import hide_keys, keys, set_up, within


def directories(root: Path) -> list[Path]:
    """The folders at or below `root` that hold W&B's run folders, in wandb/."""
    return [path for path in (root, *sorted(root.glob("*"))) if (path / "wandb").is_dir()]


def upload(root: Path, minutes: float) -> list[str]:
    """Send every run below `root` that W&B has not got; several folders of one run become one, oldest first.

    Args:
        root: results/, or the folder of a scale in it.
        minutes: after this long the upload of a scale's runs and inputs is broken off.

    Returns:
        What was done, and what could not be, in lines.

    Raises:
        InputError: there is no key.
    """
    found = directories(root)
    for directory in found[:1]:
        set_up(directory)
    if not keys():
        raise InputError("upload: expected a W&B key (WANDB_API_KEY or `wandb login`), found none; set one")
    return [line for directory in found for line in upload_directory(directory, minutes)]


def upload_directory(directory: Path, minutes: float) -> list[str]:
    waiting, report, end = folders.unsent(directory), [], time.monotonic() + minutes * 60
    with_process = {run for run in map(folders.run_id, waiting) if at_work(directory, run)}
    if with_process:
        report.append(f"{directory}: {len(with_process)} runs are still at work and stay for later")
    # W&B's own process outlives a stage for as long as a server that hangs keeps it.
    written = set(map(folders.run_id, folders.being_written(waiting))) - with_process
    if written:
        report.append(f"{directory}: {len(written)} runs are still being written by W&B; upload again later")
    later = with_process | written
    waiting = [folder for folder in waiting if folders.run_id(folder) not in later]
    if waiting:
        report.append(sync(directory, waiting, end))
    # A run that is not there has no inputs, and what kept the server from it would keep it from these.
    return report if not_sent(waiting) else report + link(directory, later, end)


def not_sent(found: list[Path]) -> list[Path]:
    return [folder for folder in found if not folders.sent_marker(folder).exists()]


def at_work(directory: Path, run: str) -> bool:
    try:
        claim(lock_path(directory, run), "upload").close()
    except InputError:
        return True
    return False


def sync(directory: Path, waiting: list[Path], end: float) -> str:
    """Have W&B's own `wandb sync` send run folders; it sends those of one run one after the other."""
    for folder in waiting:
        folders.cut_off_unfinished(folder)
    try:
        for run in set(map(folders.run_id, waiting)):
            of_run = [folder for folder in waiting if folders.run_id(folder) == run]
            folders.mark_sent(folders.needless(of_run, STEP))
        waiting = not_sent(waiting)
        said = wandb_sync(waiting, end)
        if left := not_sent(waiting):
            # One folder without a run, left by a start that failed, keeps it from sending any.
            folders.mark_sent([f for f in left if not any(record["type"] == "run" for record in folders.records(f))])
        if left := not_sent(left):
            said = wandb_sync(left, end)
    except subprocess.TimeoutExpired:
        left = len(not_sent(waiting))
        return f"{directory}: {left} of {len(waiting)} run folders could not be sent in time; the next call sends them"
    if left := not_sent(waiting):
        return f"{directory}: {len(left)} of {len(waiting)} run folders could not be sent ({hide_keys(said)})"
    return f"{directory}: {len({folders.run_id(folder) for folder in waiting})} runs sent, from {len(waiting)} folders"


def wandb_sync(waiting: list[Path], end: float) -> str:
    """The last line that `wandb sync` has said, which has until `end`, a time of the monotonic clock."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--yes", *map(str, waiting)]
    # With a process of W&B's own, not ours, so that nothing is sent any more once it has ended.
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=max(0.0, end - time.monotonic()))
    return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]


def link(directory: Path, without: set[str], end: float) -> list[str]:
    """Tell the server which artifacts each run has read."""
    ledger = Ledger(directory)
    lines = [line for line in ledger.unlinked() if line["run"] not in without]
    if not lines:
        return []
    told: list[dict] = []
    try:
        problem = ""
        within(max(0.0, end - time.monotonic()), lambda: tell(ledger, lines, told))
    except Exception as error:  # whatever W&B raises, what was sent is reported
        problem = f"; {type(error).__name__}: {hide_keys(' '.join(str(error).split()))}; the next call tries the others"
    return [f"{directory}: {len(told)} of {len(lines)} inputs tied to their runs{problem}"]


def tell(ledger: Ledger, lines: list[dict], told: list[dict]) -> None:
    """Tell of each line, adding it to `told` then.

    Raises:
        Exception: what W&B raised first, once all have been tried.
    """
    import wandb

    api, failed = wandb.Api(), []
    projects = {line["run"]: line["project"] for line in ledger.lines(RUN) if "project" in line}
    for line in lines:
        # Ledgers of before a line had its project.
        project = projects.get(line["run"], default_project())
        try:
            run = api.run(f"{project}/{line['run']}")
            run.use_artifact(api.artifact(f"{project}/{line['artifact']}:{line['alias']}"))
        except Exception as error:  # whatever W&B raises for one, the others are tried
            failed.append(error)
            continue
        ledger.add(LINKED, line["run"], artifact=line["artifact"], alias=line["alias"])
        told.append(line)
    if failed:
        raise failed[0]
