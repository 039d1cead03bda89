import pytest
import torch

from krakenlm import models
from krakenlm.evaluation import packing
from krakenlm.evaluation.packing import Pack, packs

SIZES = {"n_layer": 3, "n_head": 4, "width": 32, "vocab_size": 40, "block_size": 64}
BEGIN = [(7 * place) % 40 for place in range(60)]
# Sorted: two alone, a family that branches twice, one that goes on where another ends, one as long as the block.
INPUTS = sorted(
    [
        (1, 2, 3),
        (39,),
        tuple(BEGIN[:20]),
        (*BEGIN[:20], 5, 6, 7),
        (*BEGIN[:20], 5, 6, 8, 9),
        (*BEGIN[:45], 1),
        (*BEGIN[:45], 2, 3),
        (*BEGIN[:45], 2, 4),
        (*BEGIN, 1, 1, 1, 1),
    ]
)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("which", ["last", "last three", "every third"])
def test_logits_in_a_pack_are_those_of_each_input_alone(architecture, which):
    torch.manual_seed(1)
    extra = {"degree": 2} if architecture == "kraken" else {}
    module = models.build(SIZES | extra | {"architecture": architecture}).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4)
    wanted = [
        {
            "last": [len(row) - 1],
            "last three": range(max(0, len(row) - 3), len(row)),
            "every third": range(0, len(row), 3),
        }[which]
        for row in INPUTS
    ]
    with torch.inference_mode():
        pack = Pack(INPUTS, wanted, "cpu")
        logits_PV = module(pack.tokens_1T, cache=pack, at=pack.at_P)[0]
        for row, at, rows in zip(INPUTS, wanted, pack.rows, strict=True):
            alone_TV = module(torch.tensor([row]))[0]
            torch.testing.assert_close(logits_PV[torch.from_numpy(rows)], alone_TV[list(at)], rtol=1e-4, atol=1e-5)


def test_a_common_beginning_is_held_once():
    pack = Pack(INPUTS, [[len(row) - 1] for row in INPUTS], "cpu")
    own = 1 + 3 + 20 + 3 + 2 + 25 + 1 + 2 + 1 + 1 + 19
    # One of the family's branches is not next to where it branches off, and short beginnings are not shared.
    assert sum(map(len, INPUTS)) > 2 * pack.tokens_1T.shape[1]
    assert pack.tokens_1T.shape[1] <= own


@pytest.mark.parametrize("most_tokens", [1, 10, 30, 50, 70, 1000])
@pytest.mark.parametrize("most_wanted", [1, 4, 1000])
def test_packs_hold_every_input_once_in_order_and_no_more_than_they_may(most_tokens, most_wanted):
    wanted = [min(len(row), 2) for row in INPUTS]
    parts = list(packs(INPUTS, wanted, most_tokens, most_wanted))
    assert [row for part in parts for row in INPUTS[part]] == INPUTS
    for part in parts:
        pack = Pack(INPUTS[part], [range(len(row) - 1, len(row)) for row in INPUTS[part]], "cpu")
        if part.stop - part.start > 1:
            assert pack.tokens_1T.shape[1] <= most_tokens
            assert sum(wanted[part]) <= most_wanted


def test_a_family_stays_together_where_it_fits():
    first, second = [(1,) * 20 + (n,) for n in (2, 3)], [(4,) * 20 + (n,) for n in (5, 6)]
    parts = list(packs([*first, *second], [1] * 4, most_tokens=30, most_wanted=100))
    assert parts == [slice(0, 2), slice(2, 4)]


def test_beginnings_of_few_tokens_are_not_shared():
    row = tuple(range(packing.SHORTEST_SHARED))
    assert packing.shared_length((*row, 1), (*row, 2)) == packing.SHORTEST_SHARED
    assert packing.shared_length((*row[1:], 1), (*row[1:], 2)) == 0
