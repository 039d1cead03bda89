"""Run a command; print how long it took and the most memory that it and all its descendants held together.

    python benchmarks/peak_memory.py snakemake --cores all

Memory is the sum of proportional set sizes (PSS, which counts a shared page once), sampled once a second: five times a
second took a fifth of a core from what the command times.
"""

import subprocess
import sys
import time

import psutil


def memory(process: psutil.Process) -> int:
    """Bytes held by a process; 0 once it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def main(command: list[str]) -> int:
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                break
            peak = max(peak, sum(memory(process) for process in family))
            time.sleep(1)
    print(f"{time.monotonic() - start:.0f} s, {peak / 1e9:.2f} GB at most, exit status {child.returncode}")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
