import numpy as np
import pytest
from scipy import stats

from krakenlm.evaluation.statistics import Difference, bootstrap_interval, paired_difference


def test_bootstrap_interval_of_a_ratio_is_that_of_its_linearised_error():
    draws = np.random.default_rng(1)
    size_U = draws.integers(20, 200, size=400).astype(float)
    value_U = size_U * 3 + draws.normal(0, 5, size=400) * np.sqrt(size_U)
    ratio = value_U.sum() / size_U.sum()
    error = np.sqrt(400 / 399 * (((value_U - ratio * size_U) / size_U.sum()) ** 2).sum())
    low, high = bootstrap_interval(value_U, size_U)
    assert low == pytest.approx(ratio - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(ratio + 1.96 * error, abs=0.25 * error)
    assert bootstrap_interval(value_U, size_U) == (low, high)


def test_bootstrap_interval_is_scipys_to_the_bit():
    draws = np.random.default_rng(2)
    for units in (2, 3, 40, 1248):
        value_U, size_U = draws.normal(50, 20, size=units), draws.integers(1, 200, size=units)
        expected = stats.bootstrap(
            (value_U, size_U),
            lambda value, size, axis: value.sum(axis=axis) / size.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=2000,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert bootstrap_interval(value_U, size_U) == (expected.low, expected.high)


def test_a_single_unit_has_no_interval():
    one = np.array([[2.0]])
    assert bootstrap_interval(one[0], one[0]) == (None, None)
    found = paired_difference(one, one / 2, np.array([1.0]))
    assert found.mean == 1
    assert found.interval() == (None, None)
    assert found.p_value() is None
    assert found.p_equivalence(2.0) is None


def test_with_one_seed_and_equal_sizes_it_is_the_paired_t_test():
    first, second = np.random.default_rng(2).normal(size=(2, 1, 50))
    found, expected = paired_difference(first, second, np.ones(50)), stats.ttest_rel(first[0], second[0])
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_equivalence_is_found_exactly_where_the_90_percent_interval_lies_within_the_margin():
    for mean in (-0.3, 0.0, 0.1, 0.25):
        found = Difference(mean, standard_error=0.05, degrees=7.0, seeds=3, units=100)
        low, high = found.interval(0.90)
        for margin in (0.05, 0.09, 0.11, 0.2, 0.4):
            assert (found.p_equivalence(margin) < 0.05) == (-margin < low and high < margin)


def test_answers_that_never_differ_are_no_proof_of_equivalence():
    same = np.random.default_rng(3).normal(size=(3, 20))
    found = paired_difference(same, same, np.ones(20))
    assert (found.mean, found.interval(), found.p_value(), found.p_equivalence(0.01)) == (0, (None, None), None, None)


@pytest.mark.parametrize(("between_seeds", "between_units"), [(0.05, 0.1), (0.02, 1.0), (0.0, 0.3)])
def test_intervals_hold_the_true_difference_at_least_as_often_as_they_say(between_seeds, between_units):
    draws, held = np.random.default_rng(4), 0
    for _ in range(400):
        size_U = draws.integers(5, 60, size=80).astype(float)
        noise = draws.normal(0, 1, size=(3, 80)) * np.sqrt(size_U)
        unit_U = draws.normal(0, between_units, size=80) * size_U
        difference_SU = (0.2 + draws.normal(0, between_seeds, size=(3, 1))) * size_U + unit_U + noise
        low, high = paired_difference(difference_SU, np.zeros((3, 80)), size_U).interval()
        held += low <= 0.2 <= high
    assert held >= 0.93 * 400
