"""`small_stage.py` in a process of its own, what of its run has arrived, and what is on the disk."""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from subprocess import PIPE

from tracked_runs import SECONDS

from krakenlm.tracking import folders
from krakenlm.tracking.run import STEP

STAGE = Path(__file__).parent / "small_stage.py"
LOSS, SPEED = "train/loss", "train/tokens_per_second"
MANY = 3000  # rows of so many steps are more than W&B's own process keeps in its memory before it writes them


@contextlib.contextmanager
def stage(directory, last, mode, end="outputs"):
    """`small_stage.py`, from its start or, a second time, going on; it is waiting halfway."""
    command = [sys.executable, STAGE, directory, str(last), mode, end]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "halfway\n", complaints(process)
            yield process
        finally:
            process.kill()


def complaints(process):
    """What a stage that is not where it should be has said on stderr; it is over with it."""
    process.kill()
    return process.stderr.read()


def end_of(process, last):
    """What the stage has said on stderr, once it has come to its end."""
    out, err = process.communicate("go on\n", timeout=SECONDS)
    assert (process.returncode, out) == (0, f"logged {last}\n"), err
    return err


def train(directory, last, mode):
    with stage(directory, last, mode) as process:
        assert end_of(process, last) == ""


def go_on(process, last):
    """Let the stage come to where it hangs."""
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"logged {last}\n", complaints(process)


def wait_for(look, enough=bool):
    """Look until what is seen is enough."""
    end = time.monotonic() + SECONDS
    while not enough(seen := look()):
        assert time.monotonic() < end, f"after {SECONDS} s there is {seen!r}"
        time.sleep(0.05)


def on_disk(directory):
    """Sizes of what W&B's own process has written, a file for each process, oldest first."""
    return [folders.records_file(folder).stat().st_size for folder in folders.run_folders(directory)]


def losses(server):
    """(step, loss) of the one run's history rows, as they arrived."""
    (run,) = server.runs.values()
    return [(row[STEP], row[LOSS]) for row in run.history if LOSS in row]


def counts(server, name):
    """How many rows of the one run have a value of this name, by step."""
    (run,) = server.runs.values()
    return Counter(row[STEP] for row in run.history if name in row)


def arrived(server):
    return len(losses(server)) if server.runs else 0


def wandbs_process(parent):
    """The id of W&B's own process, a child of the one with the run."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    (found,) = [int(child) for child in children if "wandb" in Path(f"/proc/{child}/comm").read_text()]
    return found
