import dataclasses
import itertools

import numpy as np
import pytest
import torch

from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import TrainingWindows, starts, validation_starts

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
    assert starts(0, 0, 4, 1000).tolist() == [259, 458, 49, 556]


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
