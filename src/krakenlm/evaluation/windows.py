"""Which tokens of a text are predicted, and from which: windows in order, overlapping by choice, or at random.

Shapes: W windows of equal length, B windows of a batch, T tokens of a window, P predicted tokens, window by window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Windows of `length` inputs each, from the tokens `first_W` on; the last `counted` of their targets count."""

    first_W: np.ndarray
    length: int
    counted: int

    @property
    def at_P(self) -> np.ndarray:
        """Places of the tokens that are predicted here."""
        last_W = self.first_W + self.length
        return (last_W[:, None] - np.arange(self.counted)[::-1]).ravel()

    def cut(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(inputs_WT, targets_WC), int64, with the targets that count alone."""
        places = self.first_W[:, None] + np.arange(self.length + 1)
        tokens_WT = tokens[places].astype(np.int64)
        return tokens_WT[:, :-1], tokens_WT[:, -self.counted :]


def in_order(tokens: int, length: int, stride: int) -> list[Windows]:
    """Windows that predict each of `tokens` tokens but the first once, in order.

    A window begins `stride` tokens after the one before it. Its first targets are those that the window before it has
    predicted already and do not count, so every token but the first `length` ones has a context of at least
    `length - stride + 1` tokens. At stride = length nothing overlaps. The last window may be shorter.
    """
    predicted = tokens - 1
    length = min(length, predicted)
    more = (predicted - length) // stride
    first_W, done = np.arange(more + 1) * stride, length + more * stride
    parts = [Windows(first_W[:1], length, length), Windows(first_W[1:], length, min(stride, length))]
    if stride >= length:
        parts = [Windows(first_W, length, length)]
    if done < predicted:
        start = (more + 1) * stride
        parts.append(Windows(np.array([start]), predicted - start, predicted - done))
    return [part for part in parts if len(part.first_W)]


def at_random(tokens: int, length: int, count: int) -> list[Windows]:
    """`count` windows anywhere in `tokens` tokens, the same ones in every call: Philox's raw stream, as in training."""
    length = min(length, tokens - 1)
    raw = np.random.Philox(key=np.zeros(2, dtype=np.uint64)).random_raw(count)
    return [Windows((raw % np.uint64(tokens - length)).astype(np.int64), length, length)]


def batches(parts: Sequence[Windows], most_tokens: int) -> Iterator[Windows]:
    """The same windows in the same order, as many at a time as have `most_tokens` inputs together, at least one."""
    for part in parts:
        count = max(1, most_tokens // part.length)
        for first in range(0, len(part.first_W), count):
            yield Windows(part.first_W[first : first + count], part.length, part.counted)
