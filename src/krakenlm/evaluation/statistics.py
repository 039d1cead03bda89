"""How far a score can be trusted: intervals over what was scored, and two models compared on the same of it.

Shapes: U units (documents or examples), S seeds. A score is a ratio of sums, sum(value_U) / sum(size_U): nats over
tokens, or right answers over examples, whose sizes are all 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy

RESAMPLES, DRAWN_AT_ONCE = 2000, 100
CONFIDENCE = 0.95


def bootstrap_interval(value_U: np.ndarray, size_U: np.ndarray) -> tuple[float | None, float | None]:
    """95% interval of sum(value_U) / sum(size_U) when units are drawn again (percentile bootstrap, 2000 draws).

    Seeded: equal in, equal out, and equal to SciPy's, whose statistics take longer to import than this to compute.
    Nothing is known from a single unit: (None, None).
    """
    if len(value_U) < 2:
        return None, None
    rng, units = np.random.default_rng(0), len(value_U)
    ratios = []
    for _ in range(0, RESAMPLES, DRAWN_AT_ONCE):
        drawn = rng.integers(0, units, (DRAWN_AT_ONCE, units))
        ratios.append(value_U[drawn].sum(axis=-1) / size_U[drawn].sum(axis=-1))
    ordered = np.sort(np.concatenate(ratios))
    tail = (1 - CONFIDENCE) / 2
    return quantile(ordered, tail), quantile(ordered, 1 - tail)


def quantile(ordered: np.ndarray, share: float) -> float:
    """Linear between the two nearest of `ordered` numbers (Hyndman and Fan 1996, type 7), as SciPy rounds it."""
    rank = share * len(ordered) + (1 - share)
    below, part = int(rank) - 1, rank % 1
    return float((1 - part) * ordered[below] + part * ordered[min(below + 1, len(ordered) - 1)])


@dataclass(frozen=True)
class Difference:
    """A mean difference of two models' scores, with what is known of its error.

    standard_error and degrees (of freedom) are None where they are unknown: of a single unit, or of units that do not
    vary at all.
    """

    mean: float
    standard_error: float | None
    degrees: float | None
    seeds: int
    units: int

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
        if self.standard_error is None:
            return None, None
        reach = self.standard_error * float(scipy.stats.t.ppf((1 + confidence) / 2, self.degrees))
        return self.mean - reach, self.mean + reach

    def p_value(self) -> float | None:
        """Two-sided: probability of a difference at least this far from 0 if there is none."""
        return self._tail(abs(self.mean), both=True)

    def p_equivalence(self, margin: float) -> float | None:
        """Two one-sided tests (Schuirmann 1987): below 0.05, the difference lies within +-margin.

        That is so exactly where the 90% interval lies within the margin.
        """
        return self._tail(margin - abs(self.mean), both=False)

    def _tail(self, distance: float, both: bool) -> float | None:
        if self.standard_error is None:
            return None
        return (1 + both) * float(scipy.stats.t.sf(distance / self.standard_error, self.degrees))


def paired_difference(first_SU: np.ndarray, second_SU: np.ndarray, size_U: np.ndarray) -> Difference:
    """Mean over seeds of first's score less second's, both on the same units, row s of both with the same seed.

    Two things would be others in a repetition, and both are in the error: the units, whose variance is that of a
    ratio of sums (linearised) of the differences averaged over seeds; and the seeds, whose variance is that of the
    seeds' own differences. The sum of the two counts the noise of single seeds on single units twice, so the interval
    is rather too wide than too narrow (Owen 2007, The pigeonhole bootstrap). Degrees of freedom are Welch and
    Satterthwaite's: with three seeds that differ much, about two. With one seed, seeds are not in the error.
    """
    difference_SU = first_SU - second_SU
    seeds, units = difference_SU.shape
    total = size_U.sum()
    mean_S = difference_SU.sum(axis=1) / total
    mean = float(mean_S.mean())
    if units < 2:
        return Difference(mean, None, None, seeds, units)
    residual_U = (difference_SU.mean(axis=0) - mean * size_U) / total
    variances = [float(units / (units - 1) * (residual_U**2).sum())]
    degrees = [units - 1]
    if seeds > 1:
        variances.append(float(mean_S.var(ddof=1)) / seeds)
        degrees.append(seeds - 1)
    variance = sum(variances)
    if variance == 0:
        # Answers that never differ, perhaps of few examples, say nothing of how often others would.
        return Difference(mean, None, None, seeds, units)
    freedom = variance**2 / sum(part**2 / each for part, each in zip(variances, degrees, strict=True))
    return Difference(mean, math.sqrt(variance), freedom, seeds, units)
