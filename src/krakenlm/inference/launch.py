"""One process per rank on this machine, and the end of all of them when one ends badly."""

import importlib
import inspect
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from krakenlm.errors import InputError, RankError
from krakenlm.files import write_text
from krakenlm.machine import die_with, keep_freed_memory

TRACEBACK_LINES = 25
POLL_SECONDS = 0.02
# So long the other ranks have to end by themselves once one has ended badly.
GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Network:
    """Where ranks run: what stands before each one's command, and the interface that they talk over."""

    interface: str
    enter: tuple[list[str], ...]


def run_ranks(target: str, arguments: dict, world: int, threads: int, network: Network | None = None) -> Any:
    """Call `module:function(comm, device, **arguments)` in `world` processes and return rank 0's result.

    Arguments and result travel as JSON. Each rank has `threads` threads and, where there are enough, cores of its own.
    Without a `network` they talk over loopback.

    Raises:
        InputError: a rank found a mistake of the user's.
        RankError: a rank died or raised; by then the others have been ended.
    """
    [result] = stream_ranks(target, arguments, world, threads, network)
    return result


def stream_ranks(
    target: str, arguments: dict, world: int, threads: int, network: Network | None = None
) -> Iterator[Any]:
    """The same for a function that yields: its values on rank 0, each as soon as it is there.

    Whoever stops early, or is stopped, ends the ranks.
    """
    with tempfile.TemporaryDirectory(prefix="krakenlm-ranks-") as folder:
        job = {"target": target, "arguments": arguments, "world": world, "threads": threads, "parent": os.getpid()}
        (Path(folder) / "job.json").write_text(json.dumps(job))
        read_end, write_end = os.pipe()
        with open(read_end, "rb", buffering=0) as values:
            ranks = []
            try:
                with open(write_end, "wb"):
                    for rank in range(world):
                        ranks.append(start_rank(folder, rank, threads, write_end, network))
                yield from lines(values, ranks)
                explain_failure(ranks, Path(folder))
            finally:
                for process in ranks:
                    process.kill()
                    process.wait()


def start_rank(folder: str, rank: int, threads: int, values: int, network: Network | None) -> subprocess.Popen:
    """Start a rank; the first one writes its values to the file descriptor `values`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if network is None:  # loopback, unless the user names another interface
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    else:
        environment["GLOO_SOCKET_IFNAME"] = network.interface
    enter = network.enter[rank] if network else []
    command = [*enter, sys.executable, "-m", "krakenlm.inference.launch", folder, str(rank)]
    with open(Path(folder) / f"rank{rank}.log", "wb") as log:
        return subprocess.Popen(
            [*command, str(values)] if rank == 0 else command,
            pass_fds=(values,) if rank == 0 else (),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def lines(values: io.RawIOBase, ranks: list[subprocess.Popen]) -> Iterator[Any]:
    """The values that rank 0 writes, a line of JSON each, until all ranks have ended well or one of them badly."""
    unfinished, is_open = b"", True
    while True:
        # Asked before reading: what a rank wrote before it ended is there to be read.
        statuses = [process.poll() for process in ranks]
        if not is_open:
            time.sleep(POLL_SECONDS)
        elif select.select([values], [], [], POLL_SECONDS)[0]:
            block = values.read(2**16)
            is_open = bool(block)
            *complete, unfinished = (unfinished + block).split(b"\n")
            yield from map(json.loads, complete)
        if any(statuses):
            # Its peers notice a broken connection, or it was one that did: the first cause has to have ended, too.
            deadline = time.monotonic() + GRACE_SECONDS
            while None in [process.poll() for process in ranks] and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            return
        if not is_open and all(status == 0 for status in statuses):
            return


def explain_failure(ranks: list[subprocess.Popen], folder: Path) -> None:
    """Raise what a rank has ended of, if one has."""
    statuses = [process.poll() for process in ranks]
    mistakes = sorted(folder.glob("mistake*"))
    if mistakes:
        raise InputError(mistakes[0].read_text())
    failed = [rank for rank, status in enumerate(statuses) if status]
    if failed:
        # A signal is a cause, an exception may be its consequence in a peer, or that of an earlier one elsewhere.
        rank = min(failed, key=lambda rank: (statuses[rank] > 0, moment_of_exception(folder, rank), rank))
        status = statuses[rank]
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        log = (folder / f"rank{rank}.log").read_text(errors="replace").splitlines()[-TRACEBACK_LINES:]
        raise RankError(f"rank {rank} of {len(ranks)} ended {how}; the others were ended\n" + "\n".join(log))


def moment_of_exception(folder: Path, rank: int) -> int:
    """When a rank raised, in nanoseconds of the machine's monotonic clock; 0 where it ended without."""
    moment = folder / f"raised{rank}"
    return int(moment.read_text()) if moment.exists() else 0


def rank_main(folder: Path, rank: int, values: IO[str] | None) -> None:
    """Body of a rank's process; what its function returns or yields goes into `values`, if given, as lines of JSON."""
    job = json.loads((folder / "job.json").read_text())
    die_with(job["parent"])
    keep_freed_memory()
    import torch

    torch.set_num_threads(job["threads"])
    comm, device = connect(folder, rank, job["world"])
    pin(rank, job["world"], job["threads"])
    module, function = job["target"].split(":")
    try:
        with torch.inference_mode():
            result = getattr(importlib.import_module(module), function)(comm, device, **job["arguments"])
            for value in result if inspect.isgenerator(result) else [result]:
                if values is not None:
                    print(json.dumps(value), file=values, flush=True)
    except InputError as error:
        (folder / f"mistake{rank}").write_text(str(error))
        raise
    except Exception:
        write_text(folder / f"raised{rank}", str(time.monotonic_ns()))
        raise
    if values is not None:
        values.close()
    disconnect(job["world"])


def connect(folder: Path, rank: int, world: int) -> tuple[Any, str]:
    """(collectives, device) of a rank: NCCL where every rank has a GPU, gloo on CPUs, none for a single rank."""
    import torch
    import torch.distributed as dist

    from krakenlm.inference.collectives import Distributed
    from krakenlm.models.collectives import ALONE

    gpus = torch.cuda.device_count() >= world
    device = f"cuda:{rank}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(rank)
    if world == 1:
        return ALONE, device
    # A file as meeting place: no port to choose, none to collide with.
    dist.init_process_group(
        "nccl" if gpus else "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world
    )
    return Distributed(), device


def disconnect(world: int) -> None:
    if world > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()


def pin(rank: int, world: int, threads: int) -> None:
    """Give this thread, and those it starts, cores of its own; the collectives' threads, started before, roam."""
    cores = sorted(os.sched_getaffinity(0))
    if world * threads <= len(cores):
        os.sched_setaffinity(0, cores[rank * threads : (rank + 1) * threads])


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]), int(sys.argv[2]), os.fdopen(int(sys.argv[3]), "w") if sys.argv[3:] else None)
