"""What this machine is, in words, and which of its GPUs a stage may use."""

import contextlib
import ctypes
import fcntl
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from krakenlm import cgroups
from krakenlm.errors import InputError

LEASE_SECONDS = 0.5  # between two looks for a free GPU
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def keep_freed_memory() -> None:
    """Have the C library keep up to 1 GB that this process has freed for its next allocations.

    glibc hands freed memory back to the kernel early, and fetching its pages anew, cleared one by one, took 4% of a
    training step at width 128 on a CPU (docs/benchmarks.md). Other C libraries decide for themselves.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the highest that every glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def return_freed_memory() -> None:
    """Have the C library hand what this process has freed back to the kernel, once."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def query_gpus(field: str) -> list[str]:
    """A field of each NVIDIA GPU that the driver reports and CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", f"--query-gpu=index,uuid,{field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return []
    lines = listing.stdout.splitlines() if listing.returncode == 0 else []
    rows = [[word.strip() for word in line.split(",", 2)] for line in lines]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [value for _, _, value in rows]
    wanted = [word.strip() for word in visible.split(",")]
    return [value for word in wanted for index, uuid, value in rows if word and word in (index, uuid)]


def gpu_names() -> list[str]:
    return query_gpus("name")


@contextlib.contextmanager
def leased_gpus(count: int, stage: str) -> Iterator[None]:
    """Hold `count` GPUs that no other stage on this machine holds, and show this process no others.

    Snakemake and this project count GPUs, but hand out no ids. A scheduler that does (SLURM) is left to it. The
    kernel ends a lease with its process.

    Raises:
        InputError: there are fewer GPUs than that.
    """
    if count == 0 or "SLURM_JOB_ID" in os.environ:
        yield
        return
    uuids = query_gpus("uuid")
    if count > len(uuids):
        raise InputError(f"{stage}: expected {count} GPUs, found {len(uuids)}; lower the number or use another machine")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with contextlib.ExitStack() as stack:
        held: list[str] = []
        while True:
            for uuid in uuids:
                if len(held) < count and uuid not in held and take(uuid, stack):
                    held.append(uuid)
            if len(held) == count:
                break
            print(f"{stage}: waiting for {count - len(held)} more GPU(s)", file=sys.stderr, flush=True)
            time.sleep(LEASE_SECONDS)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        try:
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def take(uuid: str, stack: contextlib.ExitStack) -> bool:
    """Lock one GPU until `stack` is left; False if another process has it."""
    lock = open(Path(tempfile.gettempdir()) / f"krakenlm-{uuid}.lock", "a")  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    stack.callback(lock.close)
    return True


def count_gpus() -> int:
    return len(gpu_names())


def refuse_missing_ranks(key: str, tp: int, threads: int, gpus: int) -> None:
    """Refuse ranks that would share a GPU or, where there are no GPUs, a core: they would time each other.

    Raises:
        InputError: naming `key`.
    """
    usable = cores()
    if gpus and tp > gpus:
        raise InputError(
            f"{key}: expected at most this machine's {gpus} GPUs, found {tp}; lower it or use another machine"
        )
    if not gpus and tp * threads > usable:
        raise InputError(
            f"{key}: expected tp x threads within this machine's {usable} cores, found {tp} x {threads}; ranks that "
            "share a core would not be measured; lower one of them"
        )


def cores() -> int:
    """Cores that this process may keep busy: those it is bound to, and no more than its container's quota of time."""
    bound, quota = len(os.sched_getaffinity(0)), cgroups.core_limit()
    return bound if quota is None else max(1, min(bound, int(quota)))


def processor() -> str:
    """Name of the processor and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {cores()} cores"


def device() -> str:
    """What computes here: the GPUs, else the processor."""
    names = gpu_names()
    return f"{len(names)} x {names[0]}" if names else processor()


def memory_of_a_rank(ranks: int) -> float:
    """Bytes of memory for each of `ranks` on this machine: of a GPU, or of the machine in equal parts."""
    gpus = [each.split()[0] for each in query_gpus("memory.total")]
    # A GPU that has no memory of its own, and shares the machine's, says [N/A].
    if len(gpus) >= ranks and all(each.isdecimal() for each in gpus):
        return min(map(float, gpus)) * 2**20
    return host_memory() / ranks


def host_memory() -> int:
    """Bytes of memory that this process may have, GPUs apart: the machine's, and no more than its container's limit."""
    memory, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroups.memory_limit()
    return memory if limit is None else min(memory, limit)


def hardware() -> str:
    """Processor, cores, memory and GPUs."""
    names = gpu_names()
    return f"{processor()}, {host_memory() / 1e9:.0f} GB" + (f", {len(names)} x {names[0]}" if names else "")
