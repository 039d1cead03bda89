"""The definitions, run on a CPU by the stand-in, against the PyTorch engine; what depends on what in them."""

import pytest
import torch
from tensorrt_cases import SIZES, Session

CASES = [(name, tp) for name in SIZES for tp in (1, 2, 4) if tp <= SIZES[name].get("degree", 4)]
PROMPTS = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "tp"), CASES)
def test_every_rank_has_the_pytorch_engines_logits_in_prefill_and_decode(on_ranks, name, tp):
    def prefill_then_decode(model, record):
        session = Session(model, batch=2, capacity=9)
        pieces = [session.logits(PROMPTS[:, a:b].tolist()) for a, b in ((0, 6), (6, 7), (7, 8), (8, 9))]
        return torch.stack(pieces, dim=1)[..., : SIZES[name]["vocab_size"]]

    whole, ranks = on_ranks(SIZES[name], tp, prefill_then_decode)
    with torch.inference_mode():
        expected = whole(PROMPTS)[:, 5:]
    assert len(ranks) == tp
    for logits in ranks:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def operations(on_ranks, name):
    """{(kind, number): what its inputs depend on} of one rank of two, in one prefill."""

    def prefill(model, record):
        Session(model, batch=1, capacity=4).logits([[1, 2, 3, 4]])
        return dict(record.log)

    _, ranks = on_ranks(SIZES[name], 2, prefill)
    assert ranks[0] == ranks[1]
    return ranks[0]


def test_krakens_allreduce_and_the_attention_beside_it_are_branches_that_do_not_meet(on_ranks):
    found = operations(on_ranks, "kraken-2way")
    layers = SIZES["kraken-2way"]["n_layer"]
    assert sorted(found) == [("attention", i) for i in range(layers)] + [("custom allreduce", i) for i in range(layers)]
    for layer in range(1, layers):
        assert ("custom allreduce", layer - 1) not in found["attention", layer]
        assert ("attention", layer) not in found["custom allreduce", layer - 1]
    # The sums themselves follow one another: TensorRT-LLM's AllReduce kernels share one workspace.
    for layer in range(1, layers):
        assert ("custom allreduce", layer - 1) in found["custom allreduce", layer]


def test_ladders_allreduces_are_branches_beside_the_next_block_and_left_to_nccl(on_ranks):
    found = operations(on_ranks, "ladder")
    layers = SIZES["ladder"]["n_layer"]
    assert len([kind for kind, _ in found if kind == "nccl allreduce"]) == 2 * layers
    for layer in range(1, layers):
        fed = ("nccl allreduce", 2 * layer - 1)
        assert fed not in found["attention", layer]
        assert ("attention", layer) not in found[fed]


@pytest.mark.parametrize(("name", "per_layer"), [("standard", 2), ("parallel", 1)])
def test_the_attention_of_standard_and_parallel_comes_after_every_allreduce_before_it(on_ranks, name, per_layer):
    found = operations(on_ranks, name)
    for layer in range(1, SIZES[name]["n_layer"]):
        for number in range(per_layer * layer):
            assert ("custom allreduce", number) in found["attention", layer]
