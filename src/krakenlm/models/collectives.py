"""What a tensor-parallel forward asks of its ranks: the contract, and its smallest implementation."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor


class Group(NamedTuple):
    """Which ranks a collective joins, where each `parts` consecutive ranks hold one split together.

    `world`: all of them; `split`: those that share the rank's split; `across`: those that hold the same part of
    another split.
    """

    name: Literal["world", "split", "across"]
    parts: int = 1

    def ranks(self, rank: int, world: int) -> range:
        """The ranks that `rank` is joined with, itself among them, in ascending order."""
        if self.name == "world":
            return range(world)
        if self.name == "split":
            first = rank // self.parts * self.parts
            return range(first, first + self.parts)
        return range(rank % self.parts, world, self.parts)


WORLD = Group("world")


class Pending(Protocol):
    """A collective that has been started."""

    def wait(self) -> Tensor:
        """The result, in another buffer unless the rank is alone; blocks the stream that needs it and nothing else."""


class Collectives(Protocol):
    """Collectives of the ranks of one engine. Where a model waits decides what runs meanwhile.

    An argument may be read but not written until `wait()`. The order of summation is fixed, so that equal inputs
    give equal bits. Every rank calls the same collectives in the same order.
    """

    rank: int
    world: int

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Pending:
        """Sum of `x` over the ranks of `group`; it has the same shape on all."""

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Pending:
        """`x` of the ranks of `group`, concatenated along `dim` in the order of ranks."""


class Done:
    """A result that needs no waiting."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def done(self) -> bool:
        return True

    def wait(self) -> Tensor:
        return self._x


class Alone:
    """World 1: a sum of one is its own result."""

    rank, world = 0, 1

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Done:
        return Done(x)

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Done:
        return Done(x)


ALONE = Alone()
