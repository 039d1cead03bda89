"""Windows of tokens at random places or in permuted passes, as a pure function of seed, step and place in the batch.

Nothing here has a state: whichever process asks, in whatever order, with however many devices or micro-batches and
after any restart, update `step` sees the same windows.
"""

import functools
import threading
from collections.abc import Iterator

import numpy as np
import torch

from krakenlm.training.recipe import Recipe


class Streams(threading.local):
    """Raw Philox streams by key. One generator (for each thread) is set to the beginning of a stream, in a tenth of the
    time that a new one takes: at one window per batch that was most of the loader's work.
    """

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self.beginning = self.generator.state

    def draw(self, seed: int, number: int, count: int) -> np.ndarray:
        """The first `count` values, uint64, of the stream with the key (seed, number)."""
        key = self.beginning["state"]["key"]
        key[0], key[1] = seed, number
        self.generator.state = self.beginning
        return self.generator.random_raw(count)


STREAMS = Streams()


def starts(seed: int, step: int, batch_sequences: int, choices: int) -> np.ndarray:
    """First token of each window of update `step`, uniform over 0 to choices - 1.

    Philox is a counter-based generator whose raw stream NumPy keeps across releases (that of `integers` it does
    not). The modulo's bias is below choices / 2^64.
    """
    raw = STREAMS.draw(seed, step, batch_sequences)
    return (raw % np.uint64(choices)).view(np.int64)


def permuted_starts(seed: int, step: int, batch_sequences: int, length: int, block_size: int) -> np.ndarray:
    """First token of each window of update `step`, in passes over all windows without replacement.

    A pass takes windows that lie side by side, each once, in an order of its own and from a first token of its own, so
    that the next pass cuts elsewhere. Samples are numbered through: `step * batch_sequences` plus place in the batch.
    """
    count = max(1, (length - block_size) // block_size)
    begin, end, parts = step * batch_sequences, (step + 1) * batch_sequences, []
    for number in range(begin // count, (end - 1) // count + 1):
        first, order = one_pass(seed, number, count, min(block_size, length - count * block_size))
        before = number * count
        parts.append(first + block_size * order[max(begin - before, 0) : end - before])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def one_pass(seed: int, number: int, count: int, choices: int) -> tuple[int, np.ndarray]:
    """The first token (0 to choices - 1) of a pass, and the order of its windows: 8 bytes per window."""
    # The upper half of the keys, so that no pass shares its stream with an update of `starts`.
    raw = STREAMS.draw(seed, (1 << 63) + number, count + 1)
    return int(raw[0] % np.uint64(choices)), np.argsort(raw[1:], kind="stable")


def gather(tokens: np.ndarray, starts_B: np.ndarray, block_size: int) -> torch.Tensor:
    """Windows (B, block_size + 1), int64: each is `block_size` inputs and, shifted by one, their targets."""
    windows = np.empty((len(starts_B), block_size + 1), np.int64)
    # One copy per window, widened on the way: several times as fast as an index for every token.
    for place, start in enumerate(starts_B.tolist()):
        windows[place] = tokens[start : start + block_size + 1]
    return torch.from_numpy(windows)


class TrainingWindows:
    """The micro-batches of one rank from update `first_step` on, without end: what Lightning iterates over."""

    def __init__(
        self, tokens: np.ndarray, block_size: int, recipe: Recipe, seed: int, first_step: int, rank: int, pin: bool
    ) -> None:
        # A plain view: each slice of a memmap is a memmap again, which takes longer than to copy a window.
        self.tokens = tokens.view(np.ndarray)
        self.block_size, self.recipe, self.seed = block_size, recipe, seed
        self.first_step, self.rank, self.pin = first_step, rank, pin

    def __iter__(self) -> Iterator[torch.Tensor]:
        step = self.first_step
        while True:
            for micro_step in range(self.recipe.accumulation):
                windows = self.micro_batch(step, micro_step)
                # Pinned memory is what lets the copy to a GPU run beside its compute.
                yield windows.pin_memory() if self.pin else windows
            step += 1

    def micro_batch(self, step: int, micro_step: int) -> torch.Tensor:
        """Windows (micro_batch, block_size + 1) of this rank: its slice of the batch of update `step`."""
        recipe, length = self.recipe, len(self.tokens)
        if recipe.sampling == "permuted":
            all_starts = permuted_starts(self.seed, step, recipe.batch_sequences, length, self.block_size)
        else:
            # A window needs one token more than its inputs, so the last start is length - block_size - 1.
            all_starts = starts(self.seed, step, recipe.batch_sequences, length - self.block_size)
        first = (micro_step * recipe.devices + self.rank) * recipe.micro_batch
        return gather(self.tokens, all_starts[first : first + recipe.micro_batch], self.block_size)


def validation_starts(length: int, block_size: int, count: int) -> np.ndarray:
    """At most `count` windows that do not overlap, spread evenly over `length` tokens; the same for every model."""
    count = min(count, (length - 1) // block_size)
    return np.arange(count) * (length - 1) // count
