"""What a tensor-parallel forward asks of its ranks: the contract, and its smallest implementation."""

from typing import Literal, Protocol

from torch import Tensor

# `world`: all ranks. Ranks that share one split, and ranks that hold the same part of different splits, get their
# groups (`split`, `across`) with the first engine that spreads a split over several ranks.
Group = Literal["world"]


class Pending(Protocol):
    """A collective that has been started."""

    def wait(self) -> Tensor:
        """The result, in a buffer of its own; blocks the stream that needs it and nothing else."""


class Collectives(Protocol):
    """Collectives of the ranks of one engine. Where a model waits decides what runs meanwhile.

    An argument may be read but not written until `wait()`. The order of summation is fixed, so that equal inputs
    give equal bits. Every rank calls the same collectives in the same order.
    """

    rank: int
    world: int

    def all_reduce(self, x: Tensor, group: Group = "world") -> Pending:
        """Sum of every rank's `x`, which has the same shape on all."""

    def all_gather(self, x: Tensor, dim: int, group: Group = "world") -> Pending:
        """Every rank's `x`, concatenated along `dim` in the order of ranks."""


class Done:
    """A result that needs no waiting."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def wait(self) -> Tensor:
        return self._x


class Alone:
    """World 1: a sum of one is its own result."""

    rank, world = 0, 1

    def all_reduce(self, x: Tensor, group: Group = "world") -> Done:
        return Done(x)

    def all_gather(self, x: Tensor, dim: int, group: Group = "world") -> Done:
        return Done(x)


ALONE = Alone()
