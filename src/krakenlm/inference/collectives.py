"""The Collectives contract over torch.distributed (processes) and over threads (tests, one process)."""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from krakenlm.models.collectives import Done, Group


class Work:
    """A collective of torch.distributed under way: what it writes into, and what becomes of that."""

    def __init__(self, work: Any, result: Callable[[], Tensor]) -> None:
        self._work, self._result = work, result

    def wait(self) -> Tensor:
        self._work.wait()
        return self._result()


class Distributed:
    """torch.distributed's default group: gloo between CPU processes, NCCL on a stream of its own between GPUs.

    Both sum in an order that their algorithm fixes for a given number of ranks and size of message.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, x: Tensor, group: Group = "world") -> Work:
        # The sum is made in place, and the caller goes on reading x.
        total = x.clone(memory_format=torch.contiguous_format)
        return Work(dist.all_reduce(total, async_op=True), lambda: total)

    def all_gather(self, x: Tensor, dim: int, group: Group = "world") -> Work:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.world)]
        work = dist.all_gather(parts, x.contiguous(), async_op=True)
        return Work(work, lambda: torch.cat(parts, dim=dim))


class Threads:
    """Ranks as threads of one process; `run` calls a function once per rank.

    Sums go over ranks in ascending order, so they do not depend on which thread comes first.
    """

    def __init__(self, rank: int, world: int, slots: list, barrier: threading.Barrier) -> None:
        self.rank, self.world, self._slots, self._barrier = rank, world, slots, barrier

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._slots[self.rank] = x.detach().clone()
        self._barrier.wait()
        parts = list(self._slots)
        self._barrier.wait()  # nobody overwrites a slot before everybody has read it
        return parts

    def all_reduce(self, x: Tensor, group: Group = "world") -> Done:
        return Done(torch.stack(self._exchange(x)).sum(0))

    def all_gather(self, x: Tensor, dim: int, group: Group = "world") -> Done:
        return Done(torch.cat(self._exchange(x), dim=dim))


def run_threads(world: int, function: Callable[[Threads], Any]) -> list[Any]:
    """Call `function(comm)` in `world` threads; results in the order of ranks. A rank's error ends the others."""
    slots, barrier = [None] * world, threading.Barrier(world)
    results: list[Any] = [None] * world
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            with torch.inference_mode():
                results[rank] = function(Threads(rank, world, slots, barrier))
        except threading.BrokenBarrierError:
            return  # another rank's error is the one to report
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
