"""What AllReduces get from the link between the ranks."""

import numpy as np
import torch

from krakenlm.latency.links import gbit, off_its_label, set_rate
from krakenlm.latency.turns import interleave
from krakenlm.models.collectives import Collectives

# AllReduces of these sizes measure a link, this often each.
MEASURED_BYTES, MEASURED_ROUNDS = (2**19, 2**20, 2**21), 7
# So often a bucket's rate is corrected where AllReduces get less than the link's name says: gloo does not fill a link,
# and a small bucket loses what a late timer does not refill.
CORRECTIONS = 2


def settle(link: str, comm: Collectives, device: str) -> float | None:
    """Measure the link between the ranks, called on each of them; correct its bucket's rate where it is off its label.

    Returns what AllReduces get, in Gbit/s; None for a single rank.
    """
    measured, set_to = measure_link(comm, device), gbit(link)
    for _ in range(CORRECTIONS):
        if not off_its_label(link, measured):
            break
        set_to *= gbit(link) / measured
        set_rate(set_to)
        measured = measure_link(comm, device)
    return measured


def measure_link(comm: Collectives, device: str) -> float | None:
    """Gbit/s per rank and direction that AllReduces get: bytes moved, 2 (n - 1) / n of a message, over median time.

    Of the size that gets most. The same on every rank; None where there is one alone.
    """
    if comm.world == 1:
        return None
    messages = [torch.zeros(size // 4, device=device) for size in MEASURED_BYTES]
    steps = [lambda message=message: wait_for_sum(message, comm, device) for message in messages]
    taken = interleave(steps, comm, device, 1, lambda taken: len(taken[0]) >= MEASURED_ROUNDS)
    moved = [2 * (comm.world - 1) / comm.world * 8 * size for size in MEASURED_BYTES]
    return max(1e-6 * bits / float(np.median(each)) for bits, each in zip(moved, taken, strict=True))


def wait_for_sum(message: torch.Tensor, comm: Collectives, device: str) -> None:
    comm.all_reduce(message).wait()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
