"""Right and wrong answers of two models to the same examples, where a normal approximation of their mean fails.

Shapes: U examples.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binomtest, norm

from krakenlm.evaluation.statistics import CONFIDENCE


@dataclass(frozen=True)
class PairedAnswers:
    """Of `units` examples, how many the first model alone and the second model alone has right.

    Has what statistics.Difference has: `mean`, the difference of the shares of right answers, and what is known of it.
    """

    first_only: int
    second_only: int
    units: int
    seeds: int = 1

    @property
    def mean(self) -> float:
        return (self.first_only - self.second_only) / self.units

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Differences that the score test does not reject (Tango 1998, Statistics in Medicine 17, 891-908)."""
        reach = float(norm.ppf((1 + confidence) / 2))
        low = -1.0 if self.mean == -1 else bisect(lambda difference: self.score(difference) - reach, -1, self.mean)
        high = 1.0 if self.mean == 1 else bisect(lambda difference: self.score(difference) + reach, self.mean, 1)
        return low, high

    def p_value(self) -> float:
        """Exact McNemar test: of the examples that one model alone has right, is half the one's?"""
        differing = self.first_only + self.second_only
        return float(binomtest(self.first_only, differing).pvalue) if differing else 1.0

    def p_equivalence(self, margin: float) -> float:
        """The two one-sided score tests' larger p: below 0.05 exactly where the 90% interval lies within +-margin."""
        return float(max(norm.sf(self.score(-margin)), norm.cdf(self.score(margin))))

    def score(self, difference: float) -> float:
        """Tango's statistic, standard normal where the shares differ by `difference`; it falls with `difference`.

        Its error is that of the most likely table with this difference, in which `second_only` has the share q, the
        positive root of 2 n q^2 + b q + c = 0.
        """
        if abs(difference) > 1:  # no two shares differ so much
            return math.copysign(math.inf, -difference)
        n = self.units
        b = (2 * n - self.first_only + self.second_only) * difference - self.first_only - self.second_only
        c = -self.second_only * difference * (1 - difference)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        distance = self.first_only - self.second_only - n * difference
        variance = n * (2 * q + difference * (1 - difference))
        if variance <= 0:  # a difference that only one table has: all answers differ one way, or none does
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)


def paired_answers(first_U: np.ndarray, second_U: np.ndarray) -> PairedAnswers:
    """Two models' answers to the same examples, 1 where right and 0 where wrong."""
    return PairedAnswers(int((first_U > second_U).sum()), int((first_U < second_U).sum()), len(first_U))
