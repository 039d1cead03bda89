"""Windows of tokens at random places, as a pure function of seed, step and place in the batch.

Nothing here has a state: whichever process asks, in whatever order, with however many devices or micro-batches and
after any restart, update `step` sees the same windows.
"""

from collections.abc import Iterator

import numpy as np
import torch

from krakenlm.training.recipe import Recipe


def starts(seed: int, step: int, batch_sequences: int, choices: int) -> np.ndarray:
    """First token of each window of update `step`, uniform over 0 to choices - 1.

    Philox is a counter-based generator whose raw stream NumPy keeps across releases (that of `integers` it does
    not). The modulo's bias is below choices / 2^64.
    """
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(batch_sequences)
    return (raw % np.uint64(choices)).astype(np.int64)


def gather(tokens: np.ndarray, starts_B: np.ndarray, block_size: int) -> torch.Tensor:
    """Windows (B, block_size + 1), int64: each is `block_size` inputs and, shifted by one, their targets."""
    windows = tokens[starts_B[:, None] + np.arange(block_size + 1)]
    return torch.from_numpy(windows.astype(np.int64))


class TrainingWindows:
    """The micro-batches of one rank from update `first_step` on, without end: what Lightning iterates over."""

    def __init__(
        self, tokens: np.ndarray, block_size: int, recipe: Recipe, seed: int, first_step: int, rank: int, pin: bool
    ) -> None:
        self.tokens, self.block_size, self.recipe, self.seed = tokens, block_size, recipe, seed
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
        recipe = self.recipe
        # A window needs one token more than its inputs, so the last start is len - block_size - 1.
        all_starts = starts(self.seed, step, recipe.batch_sequences, len(self.tokens) - self.block_size)
        first = (micro_step * recipe.devices + self.rank) * recipe.micro_batch
        return gather(self.tokens, all_starts[first : first + recipe.micro_batch], self.block_size)


def validation_starts(length: int, block_size: int, count: int) -> np.ndarray:
    """At most `count` windows that do not overlap, spread evenly over `length` tokens; the same for every model."""
    count = min(count, (length - 1) // block_size)
    return np.arange(count) * (length - 1) // count
