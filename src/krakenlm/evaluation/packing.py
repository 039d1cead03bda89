"""Many inputs of a causal model in one row without padding, what several begin with held and computed once.

Shapes: L rows of every split, H heads, T tokens of the pack, P wanted positions, S seen positions, K head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np
import torch
from torch import Tensor

from krakenlm.models.blocks import causal_attention

# A shorter common beginning is computed again: to look it up would cost more.
SHORTEST_SHARED = 16


@dataclass(frozen=True)
class Alike:
    """Inputs that ask from as many places about as many: one call of attention answers them all.

    inputs: how many; queries: where their queries stand in q; seen: where what they see stands in the pack; at_P: the
    queries' positions among what is seen, None where they are the last ones.
    """

    inputs: int
    queries: Tensor
    seen: Tensor
    at_P: Tensor | None

    def attend(self, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor) -> Tensor:
        q, k, v = (
            x.index_select(2, index).unflatten(2, (self.inputs, -1)).transpose(1, 2).flatten(0, 1)
            for x, index in ((q_LHPK, self.queries), (k_LHTK, self.seen), (v_LHTK, self.seen))
        )
        return causal_attention(q, k, v, self.at_P).unflatten(0, (-1, self.inputs)).transpose(1, 2).flatten(2, 3)


class Pack:
    """Inputs side by side, as a model sees them through its argument `cache` (models.blocks.Cache).

    Each input attends to its own tokens alone. One that begins like the input before it has no copy of that beginning:
    it attends to it where it stands. So inputs should come sorted.

    tokens_1T: the pack; at_P: the places in it whose logits are wanted; rows: for each input, where the positions it
    wants stand among at_P.
    """

    def __init__(
        self, inputs: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], device: str | torch.device
    ) -> None:
        """Pack `inputs`; `wanted` are, for each, the positions in it whose logits are asked for."""
        tokens, positions, places, starts = [], [], [], []
        for number, row in enumerate(inputs):
            shared = shared_length(inputs[number - 1], row) if number else 0
            own = np.arange(len(tokens), len(tokens) + len(row) - shared)
            starts.append(len(tokens))
            places.append(np.concatenate([places[-1][:shared], own]) if shared else own)
            positions += range(shared, len(row))
            tokens += row[shared:]
        self.device = device
        self.tokens_1T = torch.tensor([tokens], dtype=torch.int64, device=device)
        self.positions_1T = torch.tensor([positions], device=device)
        asked = [places[number][list(each)] for number, each in enumerate(wanted)]
        at_P = np.unique(np.concatenate(asked))
        self.at_P = torch.from_numpy(at_P).to(device)
        self.rows = [np.searchsorted(at_P, each) for each in asked]
        ends = [*starts[1:], len(tokens)]
        self.everywhere = self.group(np.arange(len(tokens)), places, starts, ends)
        self.at_wanted = self.group(at_P, places, starts, ends)

    def group(self, at: np.ndarray, places: list[np.ndarray], starts: list[int], ends: list[int]) -> list[Alike]:
        """Queries at the places `at`, each asked by the input that brought its token, put together by their shape."""
        groups: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
        for seen, start, end in zip(places, starts, ends, strict=True):
            first, last = np.searchsorted(at, [start, end])
            if first == last:
                continue
            local = at[first:last] - start + len(seen) - (end - start)
            at_end = np.array_equal(local, np.arange(len(seen) - len(local), len(seen)))
            key = (len(local), len(seen), None if at_end else tuple(local.tolist()))
            groups.setdefault(key, []).append((np.arange(first, last), seen))
        return [
            Alike(
                len(members),
                *(torch.from_numpy(np.concatenate(each)).to(self.device) for each in zip(*members, strict=True)),
                None if local is None else torch.tensor(local, device=self.device),
            )
            for (_, _, local), members in groups.items()
        ]

    def positions(self, length: int) -> Tensor:
        """Each token's position in its own input, (1, T)."""
        return self.positions_1T

    def attend(self, layer: int, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor, at_P: Tensor | None = None) -> Tensor:
        """Attention within each input, from every place, or from this pack's `at_P`."""
        y_LHPK = torch.empty_like(q_LHPK)
        for alike in self.everywhere if at_P is None else self.at_wanted:
            y_LHPK[:, :, alike.queries] = alike.attend(q_LHPK, k_LHTK, v_LHTK)
        return y_LHPK

    def advance(self, length: int) -> None:
        """Nothing follows a pack."""


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with, 0 where they are too few to matter."""
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return length if length >= SHORTEST_SHARED else 0


def packs(
    inputs: Sequence[Sequence[int]], wanted: Sequence[int], most_tokens: int, most_wanted: int
) -> Iterator[slice]:
    """Cut sorted `inputs` into packs of at most `most_tokens` tokens and `most_wanted` wanted positions.

    A pack ends where nothing is shared if it can, so that no common beginning is computed twice; an input that is
    larger than a pack has one for itself. `wanted` counts each input's wanted positions.
    """
    shared = [0, *(shared_length(one, other) for one, other in pairwise(inputs))]
    families = [number for number in range(len(inputs)) if not shared[number]] + [len(inputs)]
    begin, size, asked = 0, 0, 0
    for first, last in pairwise(families):
        tokens = sum(len(inputs[number]) - shared[number] for number in range(first, last))
        if begin < first and (size + tokens > most_tokens or asked + sum(wanted[first:last]) > most_wanted):
            yield slice(begin, first)
            begin, size, asked = first, 0, 0
        for number in range(first, last):
            new = len(inputs[number]) - shared[number]
            if begin < number and (size + new > most_tokens or asked + wanted[number] > most_wanted):
                yield slice(begin, number)
                begin, size, asked, new = number, 0, 0, len(inputs[number])
            size, asked = size + new, asked + wanted[number]
    if begin < len(inputs):
        yield slice(begin, len(inputs))
