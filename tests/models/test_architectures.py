"""Every architecture against its equations, written out naively, split by split."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.models import products
from krakenlm.models.blocks import causal_attention
from krakenlm.models.collectives import ALONE
from krakenlm.models.sizing import (
    SHAPES,
    forward_flops_per_token,
    kraken_width,
    kraken_width_for_total,
    kv_bytes_per_token,
    parameter_count,
    prefill_flops,
    saved_bytes_per_token,
    sizes_of,
    training_memory,
)

PAPER = yaml.safe_load((Path(__file__).parents[2] / "config" / "scales" / "paper.yaml").read_text())
SMALL = {"n_layer": 3, "n_head": 4, "width": 24, "vocab_size": 96, "block_size": 32}
SIZES = {
    "standard": {"architecture": "standard", **SMALL},
    "parallel": {"architecture": "parallel", **SMALL},
    "ladder": {"architecture": "ladder", **SMALL},
    "kraken-1way": {"architecture": "kraken", "degree": 1, **SMALL},
    "kraken-2way": {"architecture": "kraken", "degree": 2, **SMALL},
    "kraken-4way": {"architecture": "kraken", "degree": 4, "ffn_expansion": 3, **SMALL},
    "kraken-3way-odd": {"architecture": "kraken", "degree": 3, **SMALL, "n_head": 9, "width": 21},
    "kraken-6way": {"architecture": "kraken", "degree": 6, **SMALL, "n_head": 6, "width": 11},
}
for name in tuple(SIZES):
    SIZES[f"{name}-bias-untied"] = {**SIZES[name], "bias": True, "tied": False}


@pytest.fixture
def tokens_BT():
    return torch.randint(96, (2, 11), generator=torch.Generator().manual_seed(1))


def drawn(sizes):
    """A model whose weights, LayerNorms included, are large enough that every mistake shows."""
    torch.manual_seed(0)
    module = models.build(sizes)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return module.double().eval()


class Weights:
    """A state dict by layer and, for a Kraken, split; a missing bias is zero."""

    def __init__(self, state, prefix="", split=None):
        self.state, self.prefix, self.split = state, prefix, split

    def within(self, prefix, split=None):
        return Weights(self.state, prefix, split)

    def __getitem__(self, name):
        tensor = self.state.get(self.prefix + name)
        if tensor is None:
            assert name.endswith("bias")
            return 0.0
        return tensor if self.split is None else tensor[self.split]


def norm(x, w, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(qkv, heads):
    """Causal softmax attention, head by head and query by query."""
    q, k, v = qkv.chunk(3, dim=-1)
    size = q.shape[-1] // heads
    rows = []
    for t in range(q.shape[1]):
        parts = []
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            scores = (q[:, t : t + 1, at] @ k[:, : t + 1, at].mT) / math.sqrt(size)
            parts.append(scores.softmax(-1) @ v[:, : t + 1, at])
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=1)


def attention(x, w, heads):
    return linear(attend(linear(x, w, "attention.qkv"), heads), w, "attention.out")


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x, w):
    return linear(gelu(linear(x, w, "mlp.up")), w, "mlp.down")


def expected_standard(w, c, x):
    for l in range(c.n_layer):
        layer = w.within(f"layers.{l}.")
        x = x + attention(norm(x, layer, "norm1"), layer, c.n_head)
        x = x + mlp(norm(x, layer, "norm2"), layer)
    return x


def expected_ladder(w, c, x):
    a = m = torch.zeros_like(x)
    for l in range(c.n_layer):
        layer = w.within(f"layers.{l}.")
        x = x + a
        a = attention(norm(x, layer, "norm1"), layer, c.n_head)
        x = x + m
        m = mlp(norm(x, layer, "norm2"), layer)
    return x + a + m


def expected_parallel(w, c, x):
    for l in range(c.n_layer):
        layer = w.within(f"layers.{l}.")
        y = linear(norm(x, layer, "norm"), layer, "qkv_up")
        attended, up = attend(y[..., : 3 * c.width], c.n_head), y[..., 3 * c.width :]
        out, down = layer["out.weight"][:, : c.width], layer["out.weight"][:, c.width :]
        x = x + attended @ out.T + gelu(up) @ down.T + layer["out.bias"]
    return x


def expected_kraken(w, c, x):
    """The paper's equations as they stand: the sum over the *other* splits, added to h_i."""
    streams = [x] * c.degree
    for l in range(c.n_layer):
        new = []
        for i in range(c.degree):
            split = w.within(f"layers.{l}.", i)
            h = streams[i] + attention(norm(streams[i], split, "norm1"), split, c.n_head // c.degree)
            others = sum(streams[j] for j in range(c.degree) if j != i) if l > 0 else 0
            new.append(h + mlp(norm(h + others, split, "norm2"), split))
        streams = new
    return torch.cat(streams, dim=-1) @ torch.cat(list(w["merge.weight"]), dim=1).T + w["merge_bias"]


def expected_logits(state, c, tokens_BT):
    w = Weights(state)
    x = w["embedding.tokens"][tokens_BT] + w["embedding.positions"][: tokens_BT.shape[1]]
    y = norm(globals()[f"expected_{c.architecture}"](w, c, x), w, "norm")
    return y @ (w["embedding.tokens"] if c.tied else w["embedding.head"]).T


@pytest.mark.parametrize("name", SIZES)
def test_logits_and_every_gradient_are_what_the_equations_say(name, tokens_BT):
    module = drawn(SIZES[name])
    state = {key: tensor.detach().clone().requires_grad_() for key, tensor in module.state_dict().items()}
    expected = expected_logits(state, module.config, tokens_BT)
    logits = module(tokens_BT)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    expected.backward(upstream)
    logits.backward(upstream)
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, state[key].grad, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("options", [{}, {"bias": True, "tied": False}])
def test_one_split_that_is_four_times_as_wide_inside_is_standard_before_a_linear(options, tokens_BT):
    kraken = drawn({"architecture": "kraken", "degree": 1, "ffn_expansion": 4, **SMALL, **options})
    standard = models.build({"architecture": "standard", **SMALL, **options}).double()
    state = {key: tensor for key, tensor in kraken.state_dict().items() if not key.startswith("merge")}
    state = {key: tensor[0] if key.startswith("layers.") else tensor for key, tensor in state.items()}
    standard.load_state_dict(state)
    y_BTD = []
    standard.norm.register_forward_pre_hook(lambda norm, inputs: y_BTD.append(inputs[0]))
    standard(tokens_BT)
    before_norm = torch.nn.functional.linear(y_BTD[0], kraken.merge.weight[0], kraken.merge_bias)
    logits = kraken.embedding.logits(kraken.norm(before_norm), ALONE)
    torch.testing.assert_close(kraken(tokens_BT), logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_positions_that_are_asked_for_are_those_of_all_logits(name, tokens_BT):
    module = drawn(SIZES[name])
    whole = module(tokens_BT)
    torch.testing.assert_close(module(tokens_BT, at=slice(-1, None)), whole[:, -1:])
    torch.testing.assert_close(module(tokens_BT, at=slice(2, 9, 3)), whole[:, 2:9:3])
    torch.testing.assert_close(module(tokens_BT, at=torch.tensor([7, 3, -1])), whole[:, [7, 3, -1]])


@pytest.mark.parametrize("name", SIZES)
def test_a_later_token_changes_no_earlier_logit(name, tokens_BT):
    module = drawn(SIZES[name])
    other = tokens_BT.clone()
    other[:, 6] = (other[:, 6] + 1) % 96
    assert torch.equal(module(tokens_BT)[:, :6], module(other)[:, :6])
    assert not torch.equal(module(tokens_BT)[:, 6:], module(other)[:, 6:])


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_counted_without_building(name):
    module = models.build(SIZES[name])
    assert parameter_count(SIZES[name]) == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("kraken-125m-2way", 124_012_302),
        ("kraken-125m-4way", 124_476_408),
        ("kraken-125m-6way", 123_205_082),
        ("kraken-350m-2way", 350_043_384),
        ("kraken-350m-4way", 353_355_716),
        ("kraken-760m-4way", 760_935_360),
        ("gpt2-124m", 124_373_760),
        ("gpt2-355m", 354_599_936),
        ("gpt2-774m", 773_582_080),
    ],
)
def test_the_papers_configurations_have_the_papers_parameters(name, parameters):
    sizes = {key: value for key, value in PAPER["models"][name].items() if key != "training"}
    sizes |= {"vocab_size": 50304, "block_size": PAPER["block_size"]}
    assert parameter_count(sizes) == parameters
    with torch.device("meta"):
        module = models.build_rank(models.config_from_dict(sizes))
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_attention_in_blocks_of_queries_is_attention(length):
    q, k, v = torch.randn(3, 2, 3, length, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        blocked = causal_attention(q, k, v)
        last = causal_attention(q[:, :, -9:], k, v)
        chosen = causal_attention(q[:, :, [5, 60]], k, v, torch.tensor([5, 60]))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(last, whole[:, :, -9:])
    torch.testing.assert_close(chosen, whole[:, :, [5, 60]])


def test_initial_weights_have_the_papers_spread():
    torch.manual_seed(0)
    sizes = {"architecture": "kraken", "degree": 4, "n_layer": 8, "n_head": 8, "width": 64}
    module = models.build(sizes | {"vocab_size": 512, "block_size": 64})
    small = 0.02 / math.sqrt(2 * 8 * 4)
    for name, tensor in module.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            spread = small if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
            assert tensor.std().item() == pytest.approx(spread, rel=0.03), name


def test_the_width_that_matches_is_the_nearest_multiple():
    assert kraken_width(1024, 16, 2) == (896, 28)  # 886.8 in multiples of 64
    assert kraken_width(12288, 96, 8) == (5376, 8 * 42)  # 5320.9 in multiples of 128
    assert kraken_width(768, 12, 4, rule="head_count") == (471, 12)  # 470.3 in multiples of 3


def test_the_width_that_matches_in_all_is_the_nearest_multiple():
    gpt2 = {"architecture": "standard", "n_layer": 12, "n_head": 12, "width": 768, "vocab_size": 50304}
    gpt2["block_size"] = 1024
    assert kraken_width_for_total(gpt2, 2, rule="head_count") == (678, 12)  # two of the authors' own
    assert kraken_width_for_total(gpt2, 4, rule="head_count") == (504, 12)
    for options in ({}, {"bias": True, "tied": False}):
        standard = gpt2 | options
        width, heads = kraken_width_for_total(standard, 4)
        assert width / (heads // 4) == 64
        kraken = standard | {"architecture": "kraken", "degree": 4, "n_head": heads}
        distances = {
            w: abs(parameter_count(kraken | {"width": w}) - parameter_count(standard)) for w in range(64, 1024, 64)
        }
        assert width == min(distances, key=distances.get)


def test_heads_that_cannot_be_matched_are_refused_by_name():
    with pytest.raises(InputError, match="rule: expected one of head_size, head_count, found 'heads'"):
        kraken_width(768, 12, 4, rule="heads")
    with pytest.raises(InputError, match=r"n_head: expected a multiple of the degree \(8\), found 12"):
        kraken_width(768, 12, 8, rule="head_count")


def test_a_kraken_has_a_split_per_rank_and_two_at_least():
    assert sizes_of("kraken", 1024, 16, 1) == {"architecture": "kraken", "degree": 2, "width": 896, "n_head": 28}
    assert sizes_of("kraken", 2048, 16, 8)["degree"] == 8
    assert sizes_of("standard", 1024, 16, 2) == {"architecture": "standard", "width": 1024, "n_head": 16}


def test_the_shapes_that_the_paper_times_are_those_of_its_scale():
    assert PAPER["latency"]["sizes"] == SHAPES


def test_flops_and_cache_of_gpt2_by_hand():
    gpt2 = {
        "architecture": "standard",
        "n_layer": 12,
        "n_head": 12,
        "width": 768,
        "vocab_size": 50304,
        "block_size": 1024,
    }
    weights = 12 * 12 * 768**2 + 50304 * 768
    assert forward_flops_per_token(gpt2, 1023) == 2 * (weights + 12 * 2 * 768 * 512)
    assert kv_bytes_per_token(gpt2, 2) == 2 * 12 * 768 * 2


@pytest.mark.parametrize("name", ["standard", "parallel", "ladder", "kraken-2way", "kraken-4way"])
def test_what_backward_keeps_is_as_large_as_the_arithmetic_says(name):
    sizes = SIZES[name] | {"width": 48, "block_size": 128}
    module = models.build(sizes)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.zeros(2, 128, dtype=torch.int64))
    assert sum(size for size, _ in kept.values()) == pytest.approx(2 * 128 * saved_bytes_per_token(sizes, 4), rel=0.05)


def test_prefill_asks_one_position_of_the_head_and_of_most_of_the_last_layer():
    sizes = {"architecture": "standard", "n_layer": 2, "n_head": 1, "width": 8, "vocab_size": 100, "block_size": 4}
    # A layer: 12 D^2 for each of 4 tokens, attention over 1 + 2 + 3 + 4 of them twice. The last one: k and v for each
    # of 4 tokens, the other 10 D^2 once, attention from one token to 4 twice. The head once. A multiply-add is 2.
    layer, last, head = 4 * 12 * 64 + 2 * 10 * 8, 4 * 2 * 64 + 10 * 64 + 2 * 4 * 8, 100 * 8
    assert prefill_flops(sizes, 4) == 2 * (layer + last + head)
    # Ladder's last layer adds its predecessor's MLP (8 D^2) behind its own attention.
    assert prefill_flops(sizes | {"architecture": "ladder"}, 4) == 2 * (layer - 3 * 8 * 64 + last + head)
    kraken = sizes | {"architecture": "kraken", "degree": 2, "n_head": 2}
    layer, last = 2 * (4 * 8 * 64 + 2 * 10 * 8), 2 * (4 * 2 * 64 + 6 * 64 + 2 * 4 * 8)
    assert prefill_flops(kraken, 4) == 2 * (layer + last + 2 * 64 + head)


def test_memory_of_training_by_hand():
    sizes = {"architecture": "standard", "n_layer": 1, "n_head": 1, "width": 8, "vocab_size": 100, "block_size": 4}
    memory = training_memory(sizes, sequences=3, element_bytes=2)
    parameters = 104 * 8 + 12 * 64 + 3 * 8
    assert (memory.weights, memory.gradients, memory.optimizer) == (6 * parameters, 4 * parameters, 8 * parameters)
    # 14 widths in two bytes and the inputs of two LayerNorms in four; the last LayerNorm; logits three times in four
    # bytes and once in two.
    assert memory.activations == 3 * 4 * (8 * (14 * 2 + 2 * 4) + 8 * 6 + 100 * 14)
    assert memory.total == 18 * parameters + memory.activations


@pytest.mark.parametrize("name", SIZES)
def test_a_model_comes_back_from_its_folder(name, tmp_path, tokens_BT):
    module = models.build(SIZES[name])
    models.save_model(module, tmp_path)
    loaded = models.load_model(tmp_path)
    assert loaded.config == module.config
    assert torch.equal(loaded(tokens_BT), module(tokens_BT))


def test_damaged_weights_are_one_clear_line(tmp_path):
    models.save_model(models.build(SIZES["standard"]), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: expected safetensors, found a damaged file"):
        models.load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"architecture": "mamba"}, "architecture: expected one of standard, parallel, ladder, kraken, found 'mamba'"),
        ({"degree": 2}, "degree: unknown key of standard"),
        ({"width": 25}, "width: expected a multiple of the 4 heads of a split, found 25"),
        ({"n_layer": 0}, "n_layer: expected a whole number of at least 1, found 0"),
        ({"architecture": "kraken", "degree": 3}, r"n_head: expected a multiple of the degree \(3\), found 4"),
        ({"architecture": "kraken"}, "degree: expected a value for kraken, found none"),
    ],
)
def test_a_mistake_in_a_configuration_names_the_key(change, line):
    with pytest.raises(InputError, match=line):
        models.config_from_dict(SIZES["standard"] | change)


def test_a_config_round_trips():
    for sizes in SIZES.values():
        config = models.config_from_dict(sizes)
        assert models.config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "odd",
    [
        {"architecture": "standard", "n_head": 3, "width": 21},
        {"architecture": "kraken", "degree": 1, "n_head": 1, "width": 13},
        {"architecture": "kraken", "degree": 3, "n_head": 9, "width": 21},
    ],
)
def test_products_padded_for_the_hardware_change_no_logit_and_no_gradient(odd, bias, compiling, tokens_BT, monkeypatch):
    module = drawn(SMALL | odd | {"bias": bias})
    plain = gradients_of(module, tokens_BT)
    monkeypatch.setattr(products, "ALIGNMENT", {"cpu": 8})
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with ProductSizes() as products_of:
        padded = gradients_of(module, tokens_BT)
    assert {size % 8 for size in products_of.sizes - {tokens_BT.numel()}} == {0}
    for key, tensor in plain.items():
        torch.testing.assert_close(padded[key], tensor, rtol=0, atol=1e-12)


def test_under_autocast_padded_products_are_close_to_unpadded_ones_and_gradients_stay_float32(tokens_BT, monkeypatch):
    module = drawn(SIZES["kraken-3way-odd-bias-untied"]).float()
    plain = gradients_of(module, tokens_BT, bfloat16=True)
    monkeypatch.setattr(products, "ALIGNMENT", {"cpu": 8})
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    for key, padded in gradients_of(module, tokens_BT, bfloat16=True).items():
        assert padded.dtype == plain[key].dtype == (torch.bfloat16 if key == "logits" else torch.float32), key
        assert (padded - plain[key]).norm() < 2e-2 * plain[key].norm(), key


@pytest.mark.parametrize("splits", [(), (1,), (3,)])
@pytest.mark.parametrize("into", [None, (3, 4)])
@pytest.mark.parametrize("width", [6, 8])  # is padded, is not
@pytest.mark.parametrize("alignment", [{}, {"cpu": 8}])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_product_refuses_an_input_of_another_width_than_the_weights(off, alignment, width, into, splits, monkeypatch):
    monkeypatch.setattr(products, "ALIGNMENT", alignment)
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    weight = torch.ones(*splits, 5, width if into is None else 3 * width // 2)
    right = width if into is None else 2 * width
    assert products.product(torch.ones(*splits, 2, 4, right), weight, into=into).shape == (*splits, 2, 4, 5)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        products.product(torch.ones(*splits, 2, 4, right + off), weight, into=into)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_product_refuses_other_splits_than_the_weights(splits):
    with pytest.raises(ValueError, match=f"the weight's {splits} splits, found 3"):
        products.product(torch.ones(3, 2, 4, 8), torch.ones(splits, 5, 8))


@pytest.mark.parametrize("end", [torch.sum, lambda y: y.square().sum()])
def test_a_second_derivative_of_splits_products_is_refused(end):
    x, weight = torch.ones(2, 1, 4, 8, requires_grad=True), torch.ones(2, 5, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph: expected False"):
        torch.autograd.grad(end(products.product(x, weight)), x, create_graph=True)


@pytest.mark.parametrize("alignment", [{}, {"cpu": 8}])
def test_a_result_may_be_changed_in_place(alignment, monkeypatch):
    monkeypatch.setattr(products, "ALIGNMENT", alignment)
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    x = torch.ones(2, 1, 4, 8, requires_grad=True)
    y = products.product(x, torch.ones(2, 5, 8))
    y += 1
    y.sum().backward()
    assert (x.grad == 5).all()


@pytest.mark.parametrize(("learning", "multiplied"), [((True, True), 2), ((True, False), 1), ((False, True), 1)])
def test_a_gradient_that_nobody_asks_for_is_not_computed(learning, multiplied):
    x, weight = torch.ones(2, 1, 4, 8), torch.ones(2, 5, 8)
    y = products.product(x.requires_grad_(learning[0]), weight.requires_grad_(learning[1]))
    with ProductSizes() as backward:
        y.sum().backward()
    assert backward.products == multiplied


class ProductSizes(TorchDispatchMode):
    """How many products there are, and the sizes of all matrices in them."""

    def __init__(self):
        super().__init__()
        self.products, self.sizes = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.products += 1
            for matrix in args[-2:]:
                self.sizes.update(matrix.shape[-2:])
        return function(*args, **kwargs or {})


def gradients_of(module, tokens_BT, bfloat16=False):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits_BTV = module(tokens_BT)
    F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    return {"logits": logits_BTV.detach()} | {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_architecture_compiles_into_one_graph(name, tokens_BT):
    torch.compiler.reset()  # graphs of the other cases count against the same function's limit of recompilations
    module = drawn(SIZES[name])
    plain = gradients_of(module, tokens_BT)
    module.compile(fullgraph=True)
    compiled = gradients_of(module, tokens_BT)
    for key, tensor in plain.items():
        torch.testing.assert_close(compiled[key], tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (torch.tensor([[3, 96]]), "expected ids from 0 to 95 (vocab_size 96), found 96"),
        (torch.tensor([[3, -1]]), "expected ids from 0 to 95 (vocab_size 96), found -1"),
        (torch.tensor([3, 4]), "expected whole numbers of shape (batch, time), found torch.int64 of shape (2,)"),
        (torch.ones(1, 2), "expected whole numbers of shape (batch, time), found torch.float32 of shape (1, 2)"),
    ],
)
def test_what_is_no_batch_of_token_ids_is_refused(tokens, line):
    with pytest.raises(InputError, match=re.escape(line)):
        drawn(SIZES["standard"])(tokens)


def test_weights_of_another_architecture_are_refused_naming_both_sides(tmp_path):
    models.save_model(drawn(SIZES["kraken-2way"]), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SIZES["standard"]))
    with pytest.raises(InputError, match=r"the weights of the standard in config\.json, found merge\.weight"):
        models.load_model(tmp_path)


def test_too_long_an_input_is_refused():
    module = models.build(SIZES["standard"])
    with pytest.raises(InputError, match=r"tokens: expected at most block_size \(32\)"):
        module(torch.zeros(1, 33, dtype=torch.long))
