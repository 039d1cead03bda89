"""Timing is alone: a lock of the whole machine that timing holds exclusively and every other stage shares.

Snakemake keeps its own jobs apart; this keeps apart what several of them, or a person at the command line, start. The
kernel frees the locks with the process, however that ends.
"""

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TIMING_LOCK = Path(tempfile.gettempdir()) / f"krakenlm-{os.getuid()}.timing.lock"


@contextlib.contextmanager
def alone(path: Path, stage: str) -> Iterator[None]:
    """Wait until every other stage has ended, and keep new ones waiting until this block has."""
    # Whoever wants to enter passes the gate, which a waiting timing job keeps shut, so the others cannot starve it.
    with open(f"{path}.gate", "a") as gate, open(path, "a") as lock:
        take(gate, fcntl.LOCK_EX, stage, "another timing job to start")
        take(lock, fcntl.LOCK_EX, stage, "other stages on this machine to end")
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextlib.contextmanager
def beside_others(path: Path, stage: str) -> Iterator[None]:
    """Wait until no timing job runs or waits, and keep new ones waiting until this block has ended."""
    with open(f"{path}.gate", "a") as gate, open(path, "a") as lock:
        take(gate, fcntl.LOCK_SH, stage, "a timing job that waits for its turn")
        take(lock, fcntl.LOCK_SH, stage, "a timing job to end")
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def take(lock: object, kind: int, stage: str, what: str) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{stage}: waiting for {what}", file=sys.stderr, flush=True)
        fcntl.flock(lock, kind)
