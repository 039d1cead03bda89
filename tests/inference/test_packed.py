"""Products with packed weights: the same logits, and the weights given up."""

import multiprocessing
import re
from pathlib import Path

import pytest
import torch

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.complete import tokens_on_rank
from krakenlm.inference.shards import as_engine, cut_rank, empty_rank, load_rank, random_rank, write_shards
from krakenlm.latency import breakdown
from krakenlm.latency.engines import measure_on_rank
from krakenlm.latency.ttft import CHUNKS, random_modules
from krakenlm.machine import keep_freed_memory
from krakenlm.models import products
from krakenlm.models.blocks import ALL, LAST
from krakenlm.models.collectives import ALONE
from krakenlm.models.products import Linear, pack

SIZES = {"n_layer": 3, "n_head": 4, "width": 64, "vocab_size": 96, "block_size": 80}
ROWS = {
    "standard": {"architecture": "standard"},
    "standard-chunked": {"architecture": "standard"},
    "parallel": {"architecture": "parallel", "bias": True},
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


@pytest.fixture
def whole(tmp_path):
    """row -> the whole model and its folder."""

    def saved(row):
        module = drawn(row)
        models.save_model(module, tmp_path / row)
        return module, tmp_path / row

    return saved


@pytest.mark.parametrize("row", ["standard", "parallel", "ladder", "kraken-1way", "kraken-2way", "kraken-4way"])
def test_two_packed_ranks_give_the_whole_models_logits(row, whole):
    module, folder = whole(row)
    tokens_BT = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(tokens_BT)
    for logits_BTV in run_threads(2, lambda comm: as_engine(cut_rank(folder, comm.rank, 2))(tokens_BT, comm)):
        torch.testing.assert_close(logits_BTV, expected, rtol=1e-4, atol=1e-4)


def test_what_generates_and_what_is_timed_is_packed(whole, tmp_path, monkeypatch):
    calls = []
    product = products.packed_product
    monkeypatch.setattr(products, "packed_product", lambda *given: calls.append(1) or product(*given))
    _, folder = whole("kraken-2way")
    assert len(list(tokens_on_rank(ALONE, "cpu", str(folder), [1], 2, None, vocabulary=96))) == 2
    generating = len(calls)
    write_shards(folder, tmp_path / "shards", 1)
    measure_on_rank(ALONE, "cpu", [[str(folder), str(tmp_path / "shards")]], [[1, 2]], 2, runs=1, warmup=0)
    beside_it = len(calls)
    timed = [{"sizes": SIZES | ROWS["kraken-2way"], "chunks": 1}]
    (module,) = random_modules(timed, 1, ALONE, "cpu", torch.float32, 0)
    with torch.inference_mode():
        module(torch.zeros(1, 3, dtype=torch.int64))
    assert 0 < generating < beside_it < len(calls)


def test_a_packed_module_has_no_weight_twice_and_counts_as_before():
    module = drawn("kraken-1way")
    count = sum(each.numel() for each in module.parameters())
    pack(module)
    linears = [each for each in module.modules() if isinstance(each, Linear)]
    assert all(each.weight.is_meta and each.packed for each in linears)
    assert sum(each.numel() for each in module.parameters()) == count
    assert [list(each.packed) for each in linears[:2]] == [[(0, 64), (64, 192)], [(0, 64)]]


def resident_mb():
    """Memory of this process, of its own and of mapped files."""
    status = Path("/proc/self/status").read_text()
    return sum(int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) for key in ("RssAnon", "RssFile")) / 1e3


def get_and_pack(how, config, folder, answer):
    torch.set_num_threads(1)
    keep_freed_memory()
    module = load_rank(folder, 0, 1) if how == "load" else random_rank(config, 0, 1, 0, "cpu", torch.float32)
    with torch.inference_mode():
        module(torch.zeros(1, 2, dtype=torch.int64))
        before = resident_mb()
        as_engine(module)(torch.zeros(1, 2, dtype=torch.int64))
    answer.put(resident_mb() - before)


@pytest.mark.parametrize("how", ["load", "draw"])
def test_an_engine_takes_no_more_memory_packed(how, tmp_path):
    sizes = {"architecture": "standard", "n_layer": 8, "n_head": 8, "width": 640, "vocab_size": 8192, "block_size": 8}
    config = models.config_from_dict(sizes)
    module = random_rank(config, 0, 1, 0, "cpu", torch.float32)
    models.save_model(module, tmp_path / "model")
    write_shards(tmp_path / "model", tmp_path / "shards", 1)
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=get_and_pack, args=(how, config, tmp_path / "shards", answer))
    process.start()
    process.join()
    assert process.exitcode == 0
    weights_mb = sum(each.nbytes for each in module.parameters()) / 1e6
    assert answer.get() < 0.1 * weights_mb


def packed_linears(module):
    return [name for name, each in pack(module).named_modules() if isinstance(each, Linear) and each.packed]


def test_small_weights_and_other_types_stay_as_they_are(monkeypatch):
    assert packed_linears(drawn("standard").to(torch.bfloat16)) == []
    monkeypatch.setattr(products, "PACKED", 64 * 64 + 1)  # of q's and the output's, which are multiplied by themselves
    assert {name.split(".", 2)[2] for name in packed_linears(drawn("standard"))} == {"mlp.up", "mlp.down"}
    monkeypatch.setattr(products, "PACKED", 2 * 64 * 64 + 1)  # of one split's hidden layer, not of all together
    assert packed_linears(drawn("kraken-4way")) == []


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
    assert not any(each.requires_grad for each in module.parameters())
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


def test_other_types_of_what_a_packed_weight_multiplies_are_named():
    linear = pack(drawn("standard")).layers[0].mlp.up
    with pytest.raises(ValueError, match=r"packed weights: expected float32 and no autocast, found torch.bfloat16"):
        linear(torch.zeros(1, 2, 64, dtype=torch.bfloat16))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"expected float32 and no autocast, found autocast"),
    ):
        linear(torch.zeros(1, 2, 64))


def test_gradients_through_a_packed_weight_are_refused():
    module = pack(drawn("standard")).requires_grad_(True)
    with pytest.raises(ValueError, match="expected an input without a gradient"):
        module(torch.zeros(1, 2, dtype=torch.int64))
    with torch.no_grad():
        module(torch.zeros(1, 2, dtype=torch.int64))
