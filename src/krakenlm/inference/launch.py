"""One process per rank on this machine, and the end of all of them when one ends badly."""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from krakenlm.errors import InputError
from krakenlm.machine import keep_freed_memory

PR_SET_PDEATHSIG = 1
TRACEBACK_LINES = 25


class RankError(RuntimeError):
    """A rank ended before its work was done; the message has the end of what it wrote."""


def run_ranks(target: str, arguments: dict, world: int, threads: int) -> Any:
    """Call `module:function(comm, device, **arguments)` in `world` processes and return rank 0's result.

    Arguments and result travel as JSON. Each rank has `threads` threads and, where there are enough, cores of its own.

    Raises:
        InputError: a rank found a mistake of the user's.
        RankError: a rank died or raised; by then the others have been ended.
    """
    with tempfile.TemporaryDirectory(prefix="krakenlm-ranks-") as folder:
        job = {"target": target, "arguments": arguments, "world": world, "threads": threads, "parent": os.getpid()}
        (Path(folder) / "job.json").write_text(json.dumps(job))
        ranks = [start_rank(folder, rank, threads) for rank in range(world)]
        try:
            wait_for_all(ranks, Path(folder))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return json.loads((Path(folder) / "result.json").read_text())


def start_rank(folder: str, rank: int, threads: int) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # Ranks of one machine talk over loopback unless the user names another interface.
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with open(Path(folder) / f"rank{rank}.log", "wb") as log:
        command = [sys.executable, "-m", "krakenlm.inference.launch", folder, str(rank)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def wait_for_all(ranks: list[subprocess.Popen], folder: Path) -> None:
    """Return when every rank has ended well; raise as soon as one has not."""
    while any(process.poll() is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.poll()]
        if failed:
            time.sleep(0.2)  # its peers notice a broken connection; the first cause is the one to show
            break
        time.sleep(0.02)
    statuses = [process.poll() for process in ranks]
    failed = [rank for rank, status in enumerate(statuses) if status]
    mistakes = sorted(folder.glob("mistake*"))
    if mistakes:
        raise InputError(mistakes[0].read_text())
    if failed:
        # A signal is a cause, an exception may be its consequence in a peer.
        rank = min(failed, key=lambda rank: (statuses[rank] > 0, rank))
        status = statuses[rank]
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        log = (folder / f"rank{rank}.log").read_text(errors="replace").splitlines()[-TRACEBACK_LINES:]
        raise RankError(f"rank {rank} of {len(ranks)} ended {how}; the others were ended\n" + "\n".join(log))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def rank_main(folder: Path, rank: int) -> None:
    """Body of a rank's process."""
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
    except InputError as error:
        (folder / f"mistake{rank}").write_text(str(error))
        raise
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
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
    rank_main(Path(sys.argv[1]), int(sys.argv[2]))
