"""Sends what offline and broken-off runs have left on this disk, and ties the runs to the artifacts they read."""

import subprocess
import sys
from pathlib import Path

from krakenlm.errors import InputError
from krakenlm.files import claim
from krakenlm.tracking import folders
from krakenlm.tracking.ledger import LINKED, RUN, Ledger
from krakenlm.tracking.run import default_project, keys, lock_path, set_up


def directories(root: Path) -> list[Path]:
    """The folders at or below `root` that hold W&B's run folders, in wandb/."""
    return [path for path in (root, *sorted(root.glob("*"))) if (path / "wandb").is_dir()]


def upload(root: Path, minutes: float) -> list[str]:
    """Send every run below `root` that W&B has not got; several folders of one run become one, oldest first.

    Args:
        root: results/, or the folder of a scale in it.
        minutes: after this long the upload of a scale's runs is broken off.

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
    waiting, report = folders.unsent(directory), []
    with_process = {run for run in map(folders.run_id, waiting) if at_work(directory, run)}
    if with_process:
        report.append(f"{directory}: {len(with_process)} runs are still at work and stay for later")
    waiting = [folder for folder in waiting if folders.run_id(folder) not in with_process]
    if waiting:
        report.append(sync(directory, waiting, minutes))
    return report + link(directory, with_process)


def at_work(directory: Path, run: str) -> bool:
    try:
        claim(lock_path(directory, run), "upload").close()
    except InputError:
        return True
    return False


def sync(directory: Path, waiting: list[Path], minutes: float) -> str:
    """Have W&B's own `wandb sync` send run folders; it sends those of one run one after the other."""
    try:
        said = wandb_sync(waiting, minutes)
        if left := [folder for folder in waiting if not folders.sent_marker(folder).exists()]:
            # One folder without a run, left by a start that failed, keeps it from sending any.
            folders.mark_sent([f for f in left if not any(record["type"] == "run" for record in folders.records(f))])
            said = wandb_sync([folder for folder in left if not folders.sent_marker(folder).exists()], minutes)
    except subprocess.TimeoutExpired:
        return f"{directory}: no end within {minutes:g} minutes; what is left will be sent the next time"
    runs = {folders.run_id(folder) for folder in waiting}
    left = [folder for folder in waiting if not folders.sent_marker(folder).exists()]
    if left:
        return f"{directory}: {len(left)} of {len(waiting)} run folders could not be sent ({hide_keys(said)})"
    return f"{directory}: {len(runs)} runs sent, from {len(waiting)} folders"


def wandb_sync(waiting: list[Path], minutes: float) -> str:
    """The last line that `wandb sync` has said."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--yes", *map(str, waiting)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=minutes * 60)
    return ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]


def hide_keys(text: str) -> str:
    for key in keys():
        text = text.replace(key, "<key>")
    return text


def link(directory: Path, without: set[str]) -> list[str]:
    """Tell the server which artifacts each run has read."""
    ledger = Ledger(directory)
    lines = [line for line in ledger.unlinked() if line["run"] not in without]
    if not lines:
        return []
    import wandb

    failed, api = [], wandb.Api()
    projects = {line["run"]: line["project"] for line in ledger.lines(RUN) if "project" in line}
    for line in lines:
        # Ledgers of before a line had its project.
        project = projects.get(line["run"], default_project())
        try:
            run = api.run(f"{project}/{line['run']}")
            run.use_artifact(api.artifact(f"{project}/{line['artifact']}:{line['alias']}"))
        except Exception as error:  # whatever W&B raises for one link, the others are tried
            failed.append(f"{line['artifact']}: {type(error).__name__}: {error}")
            continue
        ledger.add(LINKED, line["run"], artifact=line["artifact"], alias=line["alias"])
    done = f"{directory}: {len(lines) - len(failed)} of {len(lines)} inputs tied to their runs"
    return [done + (f"; {hide_keys(' '.join(failed[0].split()))}" if failed else "")]
