"""The Collectives contract over torch.distributed (processes) and over threads (tests, one process)."""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from krakenlm.models.collectives import WORLD, Done, Group, Pending


class Work:
    """A collective of torch.distributed under way: what it writes into, and what becomes of that."""

    def __init__(self, work: Any, result: Callable[[], Tensor]) -> None:
        self._work, self._result = work, result

    def done(self) -> bool:
        """Whether it has ended; calibration asks."""
        return self._work.is_completed()

    def wait(self) -> Tensor:
        self._work.wait()
        return self._result()


class Distributed:
    """torch.distributed's process groups: gloo between CPU processes, NCCL on a stream of its own between GPUs.

    Both sum in an order that their algorithm fixes for a given number of ranks and size of message.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._groups: dict[Group, Any] = {WORLD: dist.group.WORLD}

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Pending:
        if len(group.ranks(self.rank, self.world)) == 1:
            return Done(x)
        # The sum is made in place, and the caller goes on reading x.
        total = x.clone(memory_format=torch.contiguous_format)
        return Work(dist.all_reduce(total, group=self._joined(group), async_op=True), lambda: total)

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Pending:
        ranks = group.ranks(self.rank, self.world)
        if len(ranks) == 1:
            return Done(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in ranks]
        work = dist.all_gather(parts, x.contiguous(), group=self._joined(group), async_op=True)
        return Work(work, lambda: torch.cat(parts, dim=dim))

    def _joined(self, group: Group) -> Any:
        """This rank's process group; made at the first use, by every rank, since all make the same calls."""
        if group not in self._groups:
            if len(group.ranks(self.rank, self.world)) == self.world:
                self._groups[group] = dist.group.WORLD
            else:
                ranks = sorted({tuple(group.ranks(rank, self.world)) for rank in range(self.world)})
                self._groups[group], _ = dist.new_subgroups_by_enumeration([list(each) for each in ranks])
        return self._groups[group]


class Threads:
    """Ranks as threads of one process; `run` calls a function once per rank.

    Sums go over ranks in ascending order, so they do not depend on which thread comes first.
    """

    def __init__(self, rank: int, world: int, slots: list, barrier: threading.Barrier) -> None:
        self.rank, self.world, self._slots, self._barrier = rank, world, slots, barrier

    def _exchange(self, x: Tensor, group: Group) -> list[Tensor]:
        self._slots[self.rank] = x.detach().clone()
        self._barrier.wait()
        parts = [self._slots[rank] for rank in group.ranks(self.rank, self.world)]
        self._barrier.wait()  # nobody overwrites a slot before everybody has read it
        return parts

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Done:
        return Done(torch.stack(self._exchange(x, group)).sum(0))

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Done:
        return Done(torch.cat(self._exchange(x, group), dim=dim))


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
