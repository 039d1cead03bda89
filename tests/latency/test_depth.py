"""Models that do not fit a rank's memory: fewer layers timed, scaled by what a layer takes."""

import csv

import pytest
import torch

from krakenlm import machine
from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.inference.shards import empty_rank, random_rank
from krakenlm.latency import depth, ttft
from krakenlm.latency.memory import memory_of
from krakenlm.latency.simulate import PARTS
from krakenlm.models import config_from_dict
from krakenlm.models.blocks import LAST
from krakenlm.models.sizing import parameter_count, sizes_of

SETTINGS = {
    "size": "small", "tp": 1, "scale": "tiny", "run": "here", "links": ["loopback"],
    "architectures": ["standard", "kraken"], "vocab_size": 128, "contexts": [8], "batch": 1, "runs": 10,
    "most_runs": 10, "precision": 1.0, "warmup": 1, "profiled_runs": 1, "dtype": "float32", "threads": 1, "seed": 0,
    "n_layer": 12, "width": 32, "n_head": 4,
}  # fmt: skip


def measure(folder, **changes):
    return ttft.measure_ttft(out_csv=folder / "ttft.csv", breakdown_csv=folder / "parts.csv", **{**SETTINGS, **changes})


def test_a_cell_that_does_not_fit_is_measured_with_fewer_layers_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(machine, "memory_of_a_rank", lambda ranks: 0.75e6)
    rows = measure(tmp_path)
    layers = rows[0]["layers_measured"]
    assert depth.SHALLOW < layers < 12
    assert f"ttft: {layers} of 12 layers of every architecture fit" in capfd.readouterr().err
    for row in rows:  # what is computed is the whole model's
        sizes = sizes_of(row["architecture"], 32, 4, 1) | {"n_layer": 12, "vocab_size": 128, "block_size": 8}
        assert row["parameters"] == parameter_count(sizes)
        memory = memory_of(sizes, 1, 1, batch=1, context=8, dtype="float32", engine="torch-cpu")
        assert row["memory_gb"] == memory.at(8) / 1e9
        assert row["ttft_ms_median"] > 0
    with open(tmp_path / "parts.csv", newline="") as file:
        parts = list(csv.DictReader(file))
    assert {row["layers_measured"] for row in parts} == {str(layers)}
    for row in parts:
        summed = sum(float(row[f"{part}_ms"]) for part in PARTS if part != "all_reduce_hidden")
        assert summed == pytest.approx(float(row["prefill_ms"]))


def test_memory_for_no_more_than_the_shallow_copies_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_of_a_rank", lambda ranks: 1e5)
    with pytest.raises(InputError, match="size: expected models of which 3 layers fit a rank's memory"):
        measure(tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_layers_take_what_a_layer_takes():
    # 5 ms beside the layers, 3 ms a layer, in every run something else on top.
    deep, few = [5 + 3 * 10 + extra for extra in (0, 1, 2)], [5 + 3 * 2 + extra for extra in (0, 1, 2)]
    assert depth.deepened(deep, few, 10, 40) == [5 + 3 * 40 + extra for extra in (0, 1, 2)]


def test_the_most_layers_that_fit_are_found():
    assert depth.layers_that_fit(40, lambda layers: 10 + layers, 30.5) == 20
    assert depth.layers_that_fit(40, lambda layers: 10 + layers, 50) == 40
    assert depth.layers_that_fit(40, lambda layers: 10 + layers, 13) == 3


@pytest.mark.parametrize("architecture", ["standard", "kraken"])
def test_a_shallow_copy_is_the_model_of_the_first_layers_and_leaves_the_model_as_it_is(architecture):
    sizes = sizes_of(architecture, 32, 4, 1) | {"vocab_size": 64, "block_size": 16}
    module = random_rank(config_from_dict(sizes | {"n_layer": 5}), 0, 1, 0, "cpu", torch.float32)
    fewer = depth.shallow(module)
    two = empty_rank(config_from_dict(sizes | {"n_layer": 2}), 0, 1)
    two.load_state_dict({name: module.state_dict()[name] for name in two.state_dict()}, assign=True)
    tokens_BT = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(fewer(tokens_BT, cache=Cache(fewer, 1, 8), at=LAST), two(tokens_BT, at=LAST))
    assert len(module.layers) == 5


@pytest.mark.parametrize("architecture", ["standard", "kraken"])
def test_a_ranks_memory_grows_by_its_cache_and_results_with_the_prompt(architecture):
    sizes = sizes_of(architecture, 64, 4, 2) | {"n_layer": 4, "vocab_size": 256, "block_size": 64}
    memory = memory_of(sizes, 1, 2, batch=3, context=64, dtype="float32", engine="torch")
    rank = empty_rank(config_from_dict(sizes), 0, 2)
    weights = sum(4 * each.numel() for each in rank.parameters())
    cache = Cache(random_rank(config_from_dict(sizes), 0, 2, 0, "cpu", torch.float32), 3, 64)
    assert memory.at(64) > weights + 4 * 2 * cache.keys.numel()
    assert memory.per_token > 4 * 2 * cache.keys.numel() / 64
    assert memory.at(memory.longest_context(1e9)) <= 1e9 < memory.at(memory.longest_context(1e9) + 1)
    assert memory.longest_context(weights / 2) == 0
