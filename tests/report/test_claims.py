import math

import pytest
from result_rows import MODELS, comparison, ttft_rows

from krakenlm.report.claims import AGREES, DIFFERS, NOT_MEASURED, OF_ONE_RUN, TOO_SMALL, claims

ARCHITECTURES = {name: architecture for name, (architecture, _) in MODELS.items()}
LOSS = "loss, whole validation set"


def texts(rows):
    return [{key: str(value) for key, value in row.items()} for row in rows]


def three(comparisons=(), ttft=()):
    return claims(texts(comparisons), texts(ttft), ARCHITECTURES)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.01, 0.019, AGREES),
        (0.001, 0.019, AGREES),
        (0.01, 0.03, DIFFERS),
        (-0.04, -0.01, DIFFERS),
        (-0.1, 0.1, TOO_SMALL),
    ],
)
def test_perplexity_agrees_within_the_margin_and_differs_beyond_no_difference(low, high, word):
    perplexity, *_ = three([comparison(LOSS, (low + high) / 2, low, high)])
    assert perplexity.word == word


def test_perplexity_is_a_ratio_with_its_interval():
    perplexity, *_ = three([comparison(LOSS, math.log(1.25), math.log(1.1), math.log(1.4))])
    assert perplexity.ours == "kraken-2way 1.250\u00d7 [1.100 to 1.400] that of standard"


def test_a_comparison_of_standard_with_kraken_is_turned_round():
    there = three([comparison(LOSS, 0.2, 0.1, 0.3)])[0]
    back = three([comparison(LOSS, -0.2, -0.3, -0.1, model="standard", against="kraken-2way")])[0]
    assert there == back


def test_one_training_of_each_is_too_small_to_tell_however_narrow_its_interval():
    perplexity, *_ = three([comparison(LOSS, 0.2, 0.19, 0.21, seeds=1)])
    assert perplexity.word == TOO_SMALL
    assert "one training of each" in perplexity.why


def test_superglue_is_the_mean_over_tasks_with_multirc_once_and_corrected():
    rows = [
        comparison("boolq, acc", 0.06, 0.02, 0.10),
        comparison("multirc, acc", 0.9, 0.8, 1.0),
        comparison("multirc, acc (corrected)", 0.02, -0.01, 0.05),
    ]
    superglue = three(rows)[1]
    # Half widths of 4 and 3 points, 3.5 in the mean.
    assert superglue.ours == "kraken-2way +4.0 [+0.5 to +7.5] points against standard, mean of 2 tasks"
    assert superglue.word == DIFFERS


def test_equal_answers_throughout_are_still_uncertain():
    superglue = three([comparison("boolq, acc", 0.0, "", "")])[1]
    assert superglue.ours.startswith("kraken-2way +0.0 [\u22120.5 to +0.5]")  # 1.96 / 400
    assert superglue.word == AGREES


@pytest.mark.parametrize(
    ("ends", "word"), [((1.1, 1.4), AGREES), ((0.5, 0.9), DIFFERS), ((0.9, 1.6), TOO_SMALL), (("", ""), TOO_SMALL)]
)
def test_a_speed_up_agrees_where_its_interval_lies_above_one(ends, word):
    rows = [row | {"speedup_ci_low": ends[0], "speedup_ci_high": ends[1]} for row in ttft_rows()]
    for row in rows:
        if row["architecture"] == "kraken" and ends[0]:
            row["speedup_vs_standard"] = math.sqrt(ends[0] * ends[1])
    ttft = three(ttft=rows)[2]
    assert ttft.word == word
    assert "1.36\u00d7" in ttft.theirs


def one_speed_up(low, high, link="gloo over loopback", drifted=0):
    """The claim of a table of one cell, a row of Kraken and one of standard for each of ten batches."""
    ends = {"speedup_ci_low": low, "speedup_ci_high": high, "link": link, "drifted": False}
    cell = [row | ends for row in ttft_rows() if (row["tp"], row["context"]) == (2, 32)]
    for row in cell:
        if row["architecture"] == "kraken":
            row["speedup_vs_standard"] = math.sqrt(low * high)
    rows = [row | {"batch": batch} for row in cell for batch in range(10)]
    for row in rows[:drifted]:
        row["drifted"] = True
    return three(ttft=rows)[2]


@pytest.mark.parametrize(
    ("ends", "size"),
    [((1.25, 1.30), "by less than"), ((1.4, 1.5), "by more than"), ((1.30, 1.42), "by as much as")],
)
def test_a_speed_up_that_agrees_is_held_against_the_papers_and_said_to_be_of_one_run(ends, size):
    claim = one_speed_up(*ends)
    assert claim.word == AGREES
    assert claim.why == f"faster, {size} the paper\u2019s; {OF_ONE_RUN}"


def test_with_more_than_a_tenth_of_the_compared_rows_drifted_it_is_too_small_to_tell():
    assert one_speed_up(1.2, 1.3, drifted=2).word == AGREES  # of 20: Kraken's and standard's
    drifted = one_speed_up(1.2, 1.3, drifted=3)
    assert drifted.word == TOO_SMALL
    assert drifted.why.startswith("15% of the rows compared drifted")
    assert one_speed_up(0.7, 0.8, drifted=3).word == TOO_SMALL


def test_on_a_cpu_an_interval_within_a_twentieth_of_no_difference_is_too_small_to_tell():
    # Ten cells: the mean's interval is about a third as wide as a cell's.
    for ends, word in (((1.02, 1.06), AGREES), ((0.95, 0.98), DIFFERS)):
        assert one_speed_up(*ends, link="NCCL").word == word
        on_cpu = one_speed_up(*ends)
        assert on_cpu.word == TOO_SMALL
        assert "within 5% of no difference" in on_cpu.why
    assert one_speed_up(1.07, 1.09).word == AGREES


def test_the_claim_names_every_setting_and_one_slower_link_is_enough_to_differ():
    ends = {"speedup_ci_low": 1.2, "speedup_ci_high": 1.3}
    fast = [row | ends | {"link": "1gbit"} for row in ttft_rows()]
    slower = {"speedup_vs_standard": 0.9, "speedup_ci_low": 0.85, "speedup_ci_high": 0.95}
    slow = [row | slower | {"link": "loopback"} for row in ttft_rows()]
    both = three(ttft=fast + slow)[2]
    assert both.word == DIFFERS
    assert both.why == f"slower in one of these settings at least; {OF_ONE_RUN}"
    assert "link 1gbit" in both.ours
    assert "link loopback" in both.ours
    assert "0.90" in both.ours
    assert three(ttft=fast + [row | {"link": "loopback"} for row in fast])[2].word == AGREES


def test_one_setting_without_an_interval_is_not_said_to_be_all_of_them():
    known = [row | {"speedup_ci_low": 1.2, "speedup_ci_high": 1.3, "link": "1gbit"} for row in ttft_rows()]
    unknown = [row | {"speedup_ci_low": "", "speedup_ci_high": "", "link": "loopback"} for row in ttft_rows()]
    both, alone = three(ttft=known + unknown)[2], three(ttft=unknown)[2]
    assert both.word == alone.word == TOO_SMALL
    assert both.why == f"no interval was measured in one of these settings at least; {OF_ONE_RUN}"
    assert alone.why == "no interval was measured"


def test_a_figure_of_one_rank_or_of_the_simulator_is_no_measured_speed_up():
    one_rank = [row for row in ttft_rows() if row["tp"] == 1]
    simulated = [row | {"source": "simulated"} for row in ttft_rows()]
    for rows in (one_rank, simulated, []):
        assert three(ttft=rows)[2].word == NOT_MEASURED


def test_without_comparisons_nothing_is_claimed_of_quality():
    assert [claim.word for claim in three()] == [NOT_MEASURED] * 3
