"""What this machine is, in words, and how many of its GPUs may be used."""

import os
import platform
import subprocess
from pathlib import Path


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that the driver reports and CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return []
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    return names[: len([name for name in visible.split(",") if name.strip() not in ("", "-1")])]


def count_gpus() -> int:
    return len(gpu_names())


def processor() -> str:
    """Name of the processor and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def device() -> str:
    """What computes here: the GPUs, else the processor."""
    names = gpu_names()
    return f"{len(names)} x {names[0]}" if names else processor()


def hardware() -> str:
    """Processor, cores, memory and GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    names = gpu_names()
    return f"{processor()}, {memory:.0f} GB" + (f", {len(names)} x {names[0]}" if names else "")
