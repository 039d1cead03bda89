"""How long documents are, counted as they pass."""

import numpy as np

# Longer documents are counted together; quantiles up to this length are exact.
LONGEST = 1 << 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Lengths:
    """Counts of documents by their number of tokens, the end token included."""

    def __init__(self) -> None:
        self.counts = np.zeros(LONGEST + 1, np.int64)
        self.total = self.longest = 0
        self.shortest = None

    def add(self, length_U: np.ndarray) -> None:
        """Count documents of these lengths."""
        if not len(length_U):
            return
        self.counts += np.bincount(np.minimum(length_U, LONGEST), minlength=LONGEST + 1)
        self.total += int(length_U.sum())
        self.longest = max(self.longest, int(length_U.max()))
        self.shortest = min(self.shortest or LONGEST, int(length_U.min()))

    def summary(self) -> dict:
        """mean, shortest, longest, quantiles (of QUANTILES) and histogram.

        The histogram's keys are powers of two: how many documents have at least so many tokens and less than twice as
        many; beyond LONGEST it has one key for all.
        """
        documents = int(self.counts.sum())
        below = np.cumsum(self.counts)
        powers = [1 << power for power in range(LONGEST.bit_length())]
        counts = [int(self.counts[low : 2 * low].sum()) for low in powers]
        return {
            "mean": self.total / documents if documents else None,
            "shortest": self.shortest,
            "longest": self.longest,
            "quantiles": {str(share): int(np.searchsorted(below, share * documents)) for share in QUANTILES},
            "histogram": {str(low): count for low, count in zip(powers, counts, strict=True) if count},
        }
