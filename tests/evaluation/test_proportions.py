import numpy as np
import pytest

from krakenlm.evaluation.proportions import PairedAnswers, paired_answers


def test_the_score_statistic_is_tangos_own_of_44_crossed_over_patients():
    # Tango 1998: one of 44 better on the second lens alone, margin 0.1, Z = 1.709, p = 0.044.
    found = PairedAnswers(first_only=0, second_only=1, units=44)
    assert found.score(-0.1) == pytest.approx(1.709, abs=5e-4)
    assert found.p_equivalence(0.1) == pytest.approx(0.0437, abs=5e-4)


@pytest.mark.parametrize(
    ("first_only", "second_only", "units", "confidence", "expected"),
    [
        # Fagerland, Lydersen and Laake 2014, airway reactivity before and after a transplantation.
        (1, 7, 21, 0.95, (-0.517, -0.026)),
        # R's PropCIs::scoreci.mp(25, 28, 618, 0.90), whose sign is the other.
        (28, 25, 618, 0.90, (-0.0148, 0.0247)),
    ],
)
def test_intervals_are_the_published_ones(first_only, second_only, units, confidence, expected):
    found = PairedAnswers(first_only, second_only, units)
    digits = 5e-4 if units == 21 else 5e-5
    assert found.interval(confidence) == pytest.approx(expected, abs=digits)
    low, high = PairedAnswers(second_only, first_only, units).interval(confidence)
    assert (-high, -low) == pytest.approx(expected, abs=digits)


def test_mcnemar_looks_at_the_examples_that_one_model_alone_has_right():
    first, second = np.array([1, 1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0, 0])
    assert paired_answers(first, second).p_value() == pytest.approx(2 / 2**6)
    assert paired_answers(first, first).p_value() == 1


@pytest.mark.parametrize(
    "counts", [(0, 0, 1), (0, 0, 300), (5, 0, 5), (0, 5, 5), (1, 4, 5), (3, 0, 200), (20, 25, 400)]
)
def test_intervals_hold_the_difference_and_equivalence_is_that_of_the_90_percent_interval(counts):
    found = PairedAnswers(*counts)
    low, high = found.interval()
    assert -1 <= low <= found.mean <= high <= 1
    low, high = found.interval(0.90)
    for margin in (0.005, 0.02, 0.05, 0.5, 1.0, 3.0):
        assert (found.p_equivalence(margin) < 0.05) == (-margin < low and high < margin)


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    draws, held = np.random.default_rng(0), 0
    for _ in range(1000):
        first_only, second_only, _ = draws.multinomial(100, (0.06, 0.02, 0.92))
        low, high = PairedAnswers(int(first_only), int(second_only), 100).interval()
        held += low <= 0.04 <= high
    assert 930 <= held <= 980
