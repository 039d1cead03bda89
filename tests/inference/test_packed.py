"""Products with packed weights: the same logits, and the weights given up."""

import pytest
import torch

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.shards import empty_rank, random_rank
from krakenlm.latency import breakdown
from krakenlm.latency.ttft import CHUNKS
from krakenlm.models import products
from krakenlm.models.blocks import ALL, LAST
from krakenlm.models.collectives import ALONE
from krakenlm.models.products import Linear, pack

SIZES = {"n_layer": 3, "n_head": 4, "width": 64, "vocab_size": 96, "block_size": 80}
ROWS = {
    "standard": {"architecture": "standard"},
    "standard-chunked": {"architecture": "standard"},
    "parallel": {"architecture": "parallel"},
    "ladder": {"architecture": "ladder", "bias": True},
    "kraken-1way": {"architecture": "kraken", "degree": 1, "bias": True},
    "kraken-2way": {"architecture": "kraken", "degree": 2},
    "kraken-4way": {"architecture": "kraken", "degree": 4, "bias": True},
}


@pytest.fixture(autouse=True)
def every_weight_is_large(monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)


def drawn(row):
    with torch.no_grad():
        module = random_rank(models.config_from_dict(SIZES | ROWS[row]), 0, 1, 0, "cpu", torch.float32)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    if row in CHUNKS:
        module.chunks = CHUNKS[row]
    return module


@pytest.mark.parametrize("row", ROWS)
@torch.inference_mode()
def test_packed_weights_give_the_logits_of_the_weights(row):
    tokens_BT = torch.randint(96, (2, 70), generator=torch.Generator().manual_seed(0))
    found = {}
    for kind, module in {"plain": drawn(row), "packed": pack(drawn(row))}.items():
        cache = Cache(module, 2, 80)
        found[kind] = [
            module(tokens_BT[:, :60], ALONE, cache, LAST),
            module(tokens_BT[:, 60:61], ALONE, cache, LAST),
            module(tokens_BT[:, 61:66], ALONE, cache, ALL),
            module(tokens_BT[:, 66:], ALONE, cache, torch.tensor([0, 2])),
        ]
    for plain, packed in zip(found["plain"], found["packed"], strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_a_packed_module_has_no_weight_twice_and_counts_as_before():
    module = drawn("kraken-1way")
    count = sum(each.numel() for each in module.parameters())
    pack(module)
    linears = [each for each in module.modules() if isinstance(each, Linear)]
    assert all(each.weight.is_meta and each.packed for each in linears)
    assert sum(each.numel() for each in module.parameters()) == count
    assert [list(each.packed) for each in linears[:2]] == [[(0, 64), (64, 192)], [(0, 64)]]


def test_small_weights_and_other_types_stay_as_they_are(monkeypatch):
    half = pack(drawn("standard").to(torch.bfloat16))
    assert not any(each.packed for each in half.modules() if isinstance(each, Linear))
    monkeypatch.setattr(products, "PACKED", 10**6)
    assert not any(each.packed for each in pack(drawn("standard")).modules() if isinstance(each, Linear))


def test_a_rank_of_one_split_is_packed():
    module = empty_rank(models.config_from_dict(SIZES | ROWS["kraken-2way"]), 0, 2).to_empty(device="cpu")
    assert all(each.packed for each in pack(module).modules() if isinstance(each, Linear))


@torch.inference_mode()
def test_packed_products_are_products_to_the_profiler():
    seen = []

    class Noting(breakdown.Labels):
        def part_of(self, name, args):
            seen.append((name, super().part_of(name, args)))
            return seen[-1][1]

    module = pack(drawn("standard"))
    with Noting(module):
        module(torch.zeros(1, 9, dtype=torch.int64))
    assert seen.count(("_linear_pointwise", "gemm")) == 3 * 5  # q, and k with v, apart


def test_packing_keeps_no_graph_and_what_would_bring_other_weights_is_refused():
    module, other = drawn("standard").requires_grad_(), drawn("standard")
    pack(pack(module))
    assert not any(part.requires_grad for each in module.modules() if isinstance(each, Linear)
                   for parts in each.packed.values() for part in parts)  # fmt: skip
    for attempt in (
        lambda: module.load_state_dict(other.state_dict(), assign=True),
        lambda: module.to(torch.bfloat16),
        lambda: module.to_empty(device="cpu"),
        module.state_dict,
    ):
        with pytest.raises(ValueError, match="do so before `pack`"):
            attempt()
