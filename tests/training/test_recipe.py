import math

import pytest

from krakenlm.errors import InputError
from krakenlm.training.recipe import Recipe


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (1, 1.25e-7),
        (1000, 1.25e-4),
        (1999, 2.49875e-4),
        (2000, 2.5e-4),
        (76500, 2.5e-5 + 2.25e-4 * (2 + math.sqrt(2)) / 4),  # a quarter of the way: (1 + cos 45 degrees) / 2
        (151000, 1.375e-4),  # half way: the mean of peak and final
        (300000, 2.5e-5),
    ],
)
def test_the_schedule_of_the_paper_has_the_values_computed_by_hand(paper, step, rate):
    assert Recipe.from_dict(paper).rate(step) == pytest.approx(rate, rel=1e-12, abs=0)


def test_480_sequences_on_eight_devices_of_four_are_fifteen_accumulated_passes(paper):
    assert Recipe.from_dict(paper).accumulation == 15


def test_the_last_step_is_logged_validated_and_saved_wherever_it_falls(paper):
    recipe = Recipe.from_dict(paper | {"steps": 300003})
    for holds in (recipe.logs, recipe.validates, recipe.saves):
        assert holds(300003)
        assert not holds(300001)
    assert recipe.saves(999)
    assert recipe.logs(0)


@pytest.mark.parametrize(
    ("change", "key", "hint"),
    [
        ({"batch_sequences": 490}, "training.batch_sequences", "nearest are 488 and 492"),
        ({"batch_sequences": 3}, "training.batch_sequences", "nearest are 4 and 8"),
        ({"gpus": 7}, "training.gpus", "divides the 120 micro-batches of an update"),
        ({"gpus": 7}, "training.gpus", "nearest: 6 and 8"),
        ({"gpus": 121}, "training.gpus", "nearest: 120"),
        ({"gpus": 0, "devices": 16}, "training.devices", "nearest: 15 and 20"),
        ({"checkpoint_every_minutes": 0}, "training.checkpoint_every_minutes", "above 0"),
        ({"steps": 0}, "training.steps", "at least 1"),
        ({"steps": 10.5}, "training.steps", "type int"),
        ({"compile": 1}, "training.compile", "type bool"),
        ({"learning_rate": math.nan}, "training.learning_rate", "nan"),
        ({"warmup_steps": 300000}, "training.warmup_steps", "below steps"),
        ({"precision": "16-mixed"}, "training.precision", "bf16-mixed"),
        ({"beta2": 1.0}, "training.beta2", "below 1"),
        ({"batch": 8}, "training.batch", "unknown key"),
        ({"devices": 3}, "training.devices", "gpus (8)"),
    ],
)
def test_a_key_that_does_not_fit_is_named_with_what_would(paper, change, key, hint):
    with pytest.raises(InputError) as error:
        Recipe.from_dict(paper | change)
    assert str(error.value).startswith(f"{key}: ")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(paper):
    with pytest.raises(InputError, match=r"training\.clip: expected a value, found none"):
        Recipe.from_dict({key: value for key, value in paper.items() if key != "clip"})
