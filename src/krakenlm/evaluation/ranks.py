"""One model's evaluation, in this process or shared by several."""

from collections.abc import Callable, Mapping

import torch

from krakenlm.inference.launch import run_ranks
from krakenlm.models.collectives import ALONE


def on_ranks(target: str, function: Callable[..., list], arguments: Mapping, ranks: int, threads: int) -> list:
    """What `function(comm, device, **arguments)` returns on the first rank.

    Args:
        target: `module:function`, where other processes find the function.
        function: the same; one rank alone calls it here.
        arguments: JSON values.
        ranks, threads: processes, and torch's threads in each.

    Raises:
        InputError: a rank found a mistake of the user's.
        RankError: a rank died or raised.
    """
    if ranks > 1:
        return run_ranks(target, dict(arguments), ranks, threads)
    torch.set_num_threads(threads)
    return function(ALONE, "cuda" if torch.cuda.is_available() else "cpu", **arguments)
