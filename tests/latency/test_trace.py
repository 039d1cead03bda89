"""A trace has what the engine's forward does, in its order, for every architecture and number of ranks."""

import dataclasses

import pytest
import torch
from torch.overrides import TorchFunctionMode

from krakenlm.inference.shards import random_rank
from krakenlm.latency import hardware
from krakenlm.latency import trace as tracing
from krakenlm.latency.trace import Wait, trace
from krakenlm.models import ARCHITECTURES, build_rank, config_from_dict, products
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import WORLD, Done
from krakenlm.models.products import pack
from krakenlm.models.sizing import kv_bytes_per_token, prefill_flops, rank_parameter_count, sizes_of

SIZES = {"n_layer": 9, "vocab_size": 192, "block_size": 64}


def config_of(architecture, world=2, **sizes):
    return config_from_dict(SIZES | sizes_of(architecture, 64, 8, world) | sizes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_together_do_the_arithmetic_that_the_sizes_say(architecture, world):
    config = config_of(architecture, world)
    traced = trace(config, world, batch=3, new_tokens=16)
    assert world * traced.flops == 3 * prefill_flops(config.to_dict(), 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("engine", hardware.ENGINES)
@pytest.mark.parametrize(("new_tokens", "cached", "chunks"), [(16, 0, 1), (1, 16, 1), (16, 0, 2)])
def test_a_deep_models_trace_is_that_of_all_its_layers(architecture, engine, new_tokens, cached, chunks):
    config = config_of(architecture)
    settings = {"batch": 1, "new_tokens": new_tokens, "cached": cached, "engine": engine}
    settings["prepare"] = lambda module: setattr(module, "chunks", chunks)
    quick, few, more = (
        trace(dataclasses.replace(config, n_layer=n), 2, **settings)
        for n in (config.n_layer, tracing.FEW_LAYERS, tracing.FEW_LAYERS + 1)
    )
    assert tracing.extend(few, more, config.n_layer - tracing.FEW_LAYERS) == quick
    assert quick == tracing.trace_whole(config, 2, dtype="float16", **settings)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("engine", ["torch", "torch-cpu"])
def test_shapes_known_in_advance_are_those_that_torch_finds(architecture, engine, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    config = config_of(architecture, world=4, n_layer=3)
    settings = {"batch": 2, "new_tokens": 16, "dtype": "float32", "engine": engine}
    known = trace(config, 2, **settings)
    monkeypatch.setattr(tracing, "shape_alone", lambda name, args, kwargs: None)
    assert trace(config, 2, **settings).steps == known.steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_rank_does_what_the_first_does(architecture, monkeypatch):
    config = config_of(architecture, world=4, n_layer=3)
    first = trace(config, 4, batch=1, new_tokens=16)
    monkeypatch.setattr(tracing.Recording, "rank", 3)
    monkeypatch.setattr(tracing.models, "build_rank", lambda config, rank, world: build_rank(config, 3, world))
    assert trace(config, 4, batch=1, new_tokens=16).steps == first.steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_is_that_of_the_ranks_weights_and_cache(architecture):
    config = config_of(architecture, world=4)
    traced = trace(config, 4, batch=3, new_tokens=1, cached=15)
    assert traced.weights == 2 * rank_parameter_count(config.to_dict(), 4)
    assert 4 * traced.kv_cache == 3 * 16 * kv_bytes_per_token(config.to_dict(), 2)


def test_activations_are_the_most_that_live_at_once():
    class Chain(torch.nn.Module):
        def forward(self, x):
            y = x + 1  # x and y live: 2 x 400 bytes
            z = (y * 2)[:, :50]  # y dies with the next line; the view keeps all of z
            y = None
            return z + z  # z and half of it: 400 + 200

    x = torch.zeros(1, 100, device="meta")
    with tracing.Recorder(Chain()) as recorder:
        result = Chain()(x)
    assert recorder.most_activations == 800
    assert recorder.activations == 200
    del result
    assert recorder.activations == 0


def test_operations_carry_their_shapes_bytes_and_modules():
    config = config_from_dict(SIZES | {"n_layer": 1, "architecture": "standard", "width": 64, "n_head": 8})
    traced = trace(config, 2, batch=1, new_tokens=1, cached=9, dtype="float32")
    products = {each.module: each for each in traced.operations if each.kind == "product"}
    assert list(products) == ["attention.qkv", "attention.out", "mlp.up", "mlp.down", "embedding"]
    assert products["attention.qkv"].shape == (1, 1, 96, 64)
    assert products["mlp.down"].bytes == 4 * (128 + 128 * 64 + 64)
    attention = next(each for each in traced.operations if each.kind == "attention")
    assert attention.shape == (1, 4, 1, 10, 8)
    assert attention.flops == 2 * 2 * 4 * 10 * 8
    reduced = [each for each in traced.operations if each.kind == "all_reduce"]
    assert [(each.bytes, each.ranks) for each in reduced] == [(4 * 64, range(2))] * 2


def test_a_fused_kernel_reads_and_writes_what_its_neighbours_need():
    config = config_from_dict(SIZES | {"n_layer": 2, "architecture": "standard", "width": 64, "n_head": 8})
    traced = trace(config, 2, batch=1, new_tokens=8, dtype="float32", engine="tensorrt-llm")
    kernel = next(each for each in traced.operations if each.name == "add+layer_norm")
    # In: the stream, the sum, the norm's weight. Out: the stream and what the norm makes of it.
    assert (kernel.kind, kernel.bytes) == ("norm", 4 * (4 * 8 * 64 + 64))
    assert not any(each.kind == "copy" for each in traced.operations)


PACKED = {"standard": {"mlp.up", "mlp.down"}, "ladder": {"mlp.up", "mlp.down"}, "parallel": {"out"}}
PACKED["kraken"] = {"attention.qkv", "attention.out", "mlp.up", "mlp.down", "merge"}


class Calls(TorchFunctionMode):
    """Counts the functions that are called while it is active."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.strip("_"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("architecture", "degree"), [*((name, 2) for name in ARCHITECTURES), ("kraken", 4)])
def test_a_packed_engines_trace_has_the_products_that_it_makes(architecture, degree, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 64 * 64)  # not the output's product, which has half of that
    config = config_of(architecture, n_layer=3)
    if architecture == "kraken":
        config = dataclasses.replace(config, degree=degree, width=64, n_head=8)
    traced = trace(config, 2, batch=2, new_tokens=8, dtype="float32", engine="torch-cpu")
    assert traced.flops == trace(config, 2, batch=2, new_tokens=8, dtype="float32").flops
    assert {each.module for each in traced.operations if each.name == "linear_pointwise"} == PACKED[architecture]
    module = pack(random_rank(config, 0, 2, 0, "cpu", torch.float32))
    with torch.inference_mode(), Calls() as calls:
        module(torch.zeros(2, 8, dtype=torch.int64), Both(), at=LAST)
    for name in ("linear_pointwise", "linear", "bmm", "stack"):
        assert calls.names.count(name) == sum(each.name == name for each in traced.operations), name


class Both:
    """Collectives of two ranks that are the same one."""

    rank, world = 0, 2

    def all_reduce(self, x, group=WORLD):
        return Done(x)

    def all_gather(self, x, dim, group=WORLD):
        return Done(torch.cat([x, x], dim))


def test_kraken_waits_for_the_sum_after_the_attention_that_hides_it():
    config = config_of("kraken", world=4, n_layer=3)
    steps = trace(config, 4, batch=1, new_tokens=1, cached=8).steps
    kinds = ["wait" if isinstance(step, Wait) else step.kind for step in steps]
    start, end = kinds.index("all_reduce"), kinds.index("wait")
    assert [kind for kind in kinds[start:end] if kind in ("product", "attention")] == [
        "product",
        "attention",
        "product",
    ]
