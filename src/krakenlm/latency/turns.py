"""Steps timed in turns, so that what disturbs the machine disturbs all of them."""

import time
from collections.abc import Callable

import torch

from krakenlm.models.collectives import Collectives

INTERLEAVE = "run by run, in rotating order"


def interleave(
    steps: list[Callable[[], object]],
    comm: Collectives,
    device: str,
    warmup: int,
    enough: Callable[[list[list[float]]], bool],
    ready: list[Callable[[], object]] | None = None,
) -> list[list[float]]:
    """Milliseconds of each step's runs, the steps in turns, every run from a barrier on, until rank 0 has `enough`.

    A run takes as long as on the slowest rank. Each round starts one step further, so that no step always follows the
    same other. `ready` has, for each step, what goes before each of its runs and is not timed.
    """
    milliseconds: list[list[float]] = [[] for _ in steps]
    run = 0
    while True:
        for turn in range(len(steps)):
            index = (run + turn) % len(steps)
            if ready is not None:
                ready[index]()
            wait_for_ranks(comm, device)
            start = time.perf_counter()
            steps[index]()
            elapsed = slowest(time.perf_counter() - start, comm, device)
            if run >= warmup:
                milliseconds[index].append(1e3 * elapsed)
        run += 1
        # Ranks read different clocks: the first one decides for all.
        verdict = torch.tensor([float(run > warmup and comm.rank == 0 and enough(milliseconds))], device=device)
        if comm.all_reduce(verdict).wait().item():
            return milliseconds


def wait_for_ranks(comm: Collectives, device: str) -> None:
    """Return once every rank has come here."""
    comm.all_reduce(torch.zeros(1, device=device)).wait()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def slowest(seconds: float, comm: Collectives, device: str) -> float:
    """The largest of every rank's `seconds`."""
    mine = torch.tensor([seconds], dtype=torch.float64, device=device)
    return comm.all_gather(mine, dim=0).wait().max().item()
