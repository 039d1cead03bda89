"""How long each architecture's prefill waits for its AllReduces, measured where the model waits.

    python benchmarks/exposed_communication.py

Two ranks, width 1024, eight layers, float32, gloo over loopback; architectures take turns run by run. `waited` is the
time that rank 0 spent inside `pending.wait()`, the part of communication that compute does not hide.
"""

import os
import statistics
import time
from pathlib import Path

import torch

from krakenlm.inference.cache import Cache
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import random_rank
from krakenlm.latency.turns import wait_for_ranks
from krakenlm.models import config_from_dict
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import WORLD
from krakenlm.models.sizing import sizes_of

ARCHITECTURES = ("standard", "parallel", "ladder", "kraken")
CONTEXTS, RUNS, WARMUP = (64, 256, 512), 10, 2


class Waits:
    """Collectives that add up the time spent waiting for them."""

    def __init__(self, comm) -> None:
        self._comm, self.rank, self.world, self.seconds = comm, comm.rank, comm.world, 0.0

    def all_reduce(self, x, group=WORLD):
        return self._timed(self._comm.all_reduce(x, group))

    def all_gather(self, x, dim, group=WORLD):
        return self._timed(self._comm.all_gather(x, dim, group))

    def _timed(self, pending):
        wait = pending.wait

        def timed_wait():
            start = time.perf_counter()
            result = wait()
            self.seconds += time.perf_counter() - start
            return result

        pending.wait = timed_wait
        return pending


def measure_on_rank(comm, device: str) -> list[list]:
    shape = {"n_layer": 8, "vocab_size": 50304, "block_size": max(CONTEXTS)}
    sizes = [sizes_of(architecture, 1024, 16, comm.world) | shape for architecture in ARCHITECTURES]
    modules = [random_rank(config_from_dict(each), comm.rank, comm.world, 0, device, torch.float32) for each in sizes]
    waits, rows = Waits(comm), []
    for context in CONTEXTS:
        tokens_BT = torch.arange(context)[None]
        caches = [Cache(module, 1, context) for module in modules]
        took, waited = ([[] for _ in modules] for _ in range(2))
        for run in range(WARMUP + RUNS):
            for turn in range(len(modules)):
                index = (run + turn) % len(modules)
                caches[index].rewind()
                wait_for_ranks(comm, device)
                waits.seconds, start = 0.0, time.perf_counter()
                modules[index](tokens_BT, waits, caches[index], at=LAST)
                if run >= WARMUP:
                    took[index].append(1e3 * (time.perf_counter() - start))
                    waited[index].append(1e3 * waits.seconds)
        for index, architecture in enumerate(ARCHITECTURES):
            rows.append([context, architecture, statistics.median(took[index]), statistics.median(waited[index])])
    return rows


def main() -> None:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where a rank's process finds this file
    rows = run_ranks(f"{Path(__file__).stem}:measure_on_rank", {}, world=2, threads=1)
    print("| context | architecture | prefill, ms | waited, ms |\n|---|---|---|---|")
    for context, architecture, took, waited in rows:
        print(f"| {context} | {architecture} | {took:.0f} | {waited:.1f} |")


if __name__ == "__main__":
    main()
