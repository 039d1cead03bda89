import numpy as np
import pytest

from krakenlm.evaluation.windows import at_random, batches, in_order


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
@pytest.mark.parametrize("total", [2, 8, 9, 10, 16, 17, 33, 50])
def test_every_token_but_the_first_is_predicted_once_in_order_from_what_stands_before_it(total, stride):
    tokens = np.arange(total, dtype=np.uint16)
    parts = list(batches(in_order(total, 8, stride), most_tokens=24))
    cut = [part.cut(tokens) for part in parts]
    predicted = np.concatenate([targets_BC.ravel() for _, targets_BC in cut])
    assert predicted.tolist() == list(range(1, total))
    assert np.concatenate([part.at_P for part in parts]).tolist() == predicted.tolist()
    for part, (inputs_BT, targets_BC) in zip(parts, cut, strict=True):
        assert inputs_BT.shape[1] <= 8
        assert inputs_BT.size <= 24
        assert (inputs_BT[:, -part.counted :] + 1 == targets_BC).all()
        context_B = targets_BC[:, 0] - inputs_BT[:, 0]
        assert ((context_B > 8 - stride) | (inputs_BT[:, 0] == 0)).all()


def test_random_windows_are_the_same_ones_every_time_and_lie_anywhere():
    (part,) = at_random(1000, 16, 5000)
    assert (part.first_W == at_random(1000, 16, 5000)[0].first_W).all()
    assert part.first_W.min() == 0
    assert part.at_P.max() == 999
    assert (part.length, part.counted) == (16, 16)
    # A change here would change every published figure.
    assert at_random(1000, 16, 4)[0].first_W.tolist() == part.first_W[:4].tolist() == [35, 122, 249, 300]


def test_a_text_shorter_than_a_window_is_one_window():
    (part,) = at_random(5, 16, 3)
    assert (part.first_W.tolist(), part.length) == ([0, 0, 0], 4)
