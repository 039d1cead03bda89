import dataclasses
import itertools

import numpy as np
import pytest
import torch

from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import TrainingWindows, permuted_starts, starts, validation_starts

TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def batches(paper):
    """A function that lists the first micro-batches of a rank."""
    small = Recipe.from_dict(paper | {"batch_sequences": 8, "micro_batch": 8, "gpus": 0})

    def take(first_step=0, rank=0, count=6, **changes):
        recipe = dataclasses.replace(small, **changes)
        loader = TrainingWindows(TOKENS, 16, recipe, seed=3, first_step=first_step, rank=rank, pin=False)
        return list(itertools.islice(loader, count))

    return take


def test_the_starts_of_a_step_are_known_values():
    # The raw Philox stream is fixed across NumPy's releases; a change here would change every trained model.
    for choices in (1000, np.int64(1000)):  # NumPy's own, signed, would make the remainder a float
        assert starts(0, 0, 4, choices).tolist() == [259, 458, 49, 556]


def test_starts_depend_on_seed_step_and_place_alone():
    assert (starts(1, 5, 16, 900)[:4] == starts(1, 5, 4, 900)).all()
    assert (starts(1, 5, 16, 900) != starts(1, 6, 16, 900)).any()
    assert (starts(1, 5, 16, 900) != starts(2, 5, 16, 900)).any()


def test_a_run_that_starts_later_sees_the_windows_it_would_have_seen(batches):
    assert torch.equal(torch.stack(batches(first_step=4, count=2)), torch.stack(batches(count=6)[4:]))


def test_accumulation_and_devices_only_share_out_the_same_batch(batches):
    whole = torch.cat(batches(count=3))
    assert torch.equal(torch.cat(batches(micro_batch=2, count=12)), whole)
    ranks = [batches(micro_batch=2, devices=2, rank=rank, count=6) for rank in (0, 1)]
    together = [window for pair in zip(*ranks, strict=True) for window in pair]
    assert torch.equal(torch.cat(together), whole)


@pytest.mark.parametrize("sampling", ["random", "permuted"])
def test_one_two_and_four_ranks_see_the_same_windows_at_every_step(batches, sampling):
    def windows(devices, step):
        ranks = [
            batches(sampling=sampling, micro_batch=2, devices=devices, rank=rank, first_step=step, count=4 // devices)
            for rank in range(devices)
        ]
        return sorted(window.tolist() for rank in ranks for batch in rank for window in batch)

    for step in range(20):
        assert windows(1, step) == windows(2, step) == windows(4, step)
        assert len(windows(1, step)) == 8


def test_a_pass_has_every_window_once_and_the_next_one_cuts_elsewhere(batches):
    count = (1000 - 16) // 16
    flat = torch.cat(batches(sampling="permuted", batch_sequences=1, micro_batch=1, count=3 * count))
    passes = [flat[number * count : (number + 1) * count, 0] for number in range(3)]
    for firsts in passes:
        assert firsts.sort().values.diff().tolist() == [16] * (count - 1)
        assert firsts.diff().tolist() != [16] * (count - 1)
    assert len({int(firsts.min()) for firsts in passes}) > 1
    assert flat.max() < 1000


def test_a_pass_goes_on_exactly_where_a_run_was_broken_off(batches):
    whole = torch.stack(batches(sampling="permuted", count=60))
    assert torch.equal(torch.stack(batches(sampling="permuted", first_step=23, count=37)), whole[23:])


def test_the_first_windows_of_a_pass_are_known_values():
    # As for random windows: a change here would change every model that is trained this way.
    assert permuted_starts(0, 0, 4, 1000, 16).tolist() == [392, 424, 264, 504]


def test_text_of_one_window_alone_is_enough_for_a_pass():
    assert permuted_starts(0, 0, 4, 17, 16).tolist() == [0] * 4
    assert set(permuted_starts(0, 0, 50, 20, 16).tolist()) <= {0, 1, 2, 3}


def test_windows_lie_anywhere_in_the_tokens_up_to_the_last_one(batches):
    chosen = starts(0, 0, 20000, len(TOKENS) - 16)
    assert chosen.min() == 0
    assert chosen.max() + 16 == len(TOKENS) - 1
    (window,) = batches(count=1, batch_sequences=1, micro_batch=1)
    assert (window[0, 1:] == window[0, :-1] + 1).all()


@pytest.mark.parametrize(("length", "count", "expected"), [(1000, 4, 4), (1000, 100, 62), (17, 5, 1)])
def test_validation_windows_do_not_overlap_and_end_within_the_tokens(length, count, expected):
    chosen = validation_starts(length, 16, count)
    assert len(chosen) == expected
    assert (np.diff(chosen) >= 16).all()
    assert chosen[-1] + 16 < length
