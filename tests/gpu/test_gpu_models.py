"""Every architecture computes on a GPU what it computes on a CPU."""

import pytest
import torch
from gpu_cases import ARCHITECTURES, DEVICE, ROWS, SHAPES, drawn, learned, off, on_gpu, tokens, worst
from torch.nn import functional as F

from krakenlm.inference.cache import Cache
from krakenlm.models import blocks
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE

every_shape = pytest.mark.parametrize("shape", SHAPES)
every_row = pytest.mark.parametrize("row", ROWS)
# Every norm of splits as one kernel, and none so small.
every_fused = pytest.mark.parametrize("fused", [1, blocks.FUSED])
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def assert_close(found, expected, what):
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4, msg=lambda told: f"{what}: {told}")


@every_shape
@every_architecture
@every_fused
def test_logits_and_gradients_are_those_of_the_cpu(architecture, shape, fused, monkeypatch):
    monkeypatch.setattr(blocks, "FUSED", fused)
    module, tokens_BT = drawn(architecture, shape), tokens(2, 96)
    expected, found = learned(module, tokens_BT), learned(on_gpu(module), tokens_BT.to(DEVICE))
    assert_close(found["logits"], expected["logits"], "logits")
    assert worst(off(found, expected)) < (1e-4,)


@every_shape
@every_architecture
@torch.inference_mode()
def test_logits_at_wanted_positions_are_those_of_the_cpu(architecture, shape):
    module, tokens_BT = drawn(architecture, shape), tokens(2, 96)
    other = on_gpu(module)
    for at in (LAST, slice(-7, None), slice(3, 40, 5), torch.tensor([1, 17, 95])):
        wanted = at.to(DEVICE) if isinstance(at, torch.Tensor) else at
        assert_close(other(tokens_BT.to(DEVICE), at=wanted), module(tokens_BT, at=at), at)


@every_shape
@every_row
@torch.inference_mode()
def test_prefill_decoding_and_more_input_behind_a_cache_are_those_of_the_cpu(row, shape):
    """Prompts, single tokens, several tokens behind others, rows of different lengths, and continuations of one."""
    module = drawn(row, shape)
    modules = {"cpu": module, DEVICE: on_gpu(module)}
    caches = {device: Cache(each, 2, 120) for device, each in modules.items()}

    def compare(what, tokens_BT, at=LAST):
        expected, found = (each(tokens_BT.to(device), ALONE, caches[device], at=at) for device, each in modules.items())
        assert_close(found, expected, what)
        kept, own = (caches[device] for device in modules)
        assert own.lengths_B.tolist() == kept.lengths_B.tolist(), what
        assert_close(own.keys, kept.keys, f"keys after {what}")
        assert_close(own.values, kept.values, f"values after {what}")

    compare("prefill", tokens(2, 71))
    for step in range(3):
        compare(f"token {step}", tokens(2, 1, seed=step))
    compare("13 tokens more", tokens(2, 13), at=slice(None))
    compare("13 tokens more, some wanted", tokens(2, 13), at=slice(-4, None))
    for cache in caches.values():
        cache.set_lengths([87, 60])
    compare("a token behind rows of different lengths", tokens(2, 1))
    compare("5 tokens behind rows of different lengths", tokens(2, 5), at=slice(None))
    for device in caches:
        caches[device] = caches[device].fork(2)
    compare("a token of each continuation", tokens(4, 1))


@every_shape
@every_architecture
@every_fused
def test_bfloat16_is_close_to_float32(architecture, shape, fused, monkeypatch):
    monkeypatch.setattr(blocks, "FUSED", fused)
    module, tokens_BT = on_gpu(drawn(architecture, shape)), tokens(2, 96).to(DEVICE)
    expected, found = learned(module, tokens_BT), learned(module, tokens_BT, bfloat16=True)
    assert worst(off(found, expected)) < (3e-2,)


@every_architecture
def test_bfloat16_compiled_into_one_graph_is_close_to_float32(architecture):
    torch.compiler.reset()  # graphs of the other cases count against the same function's limit of recompilations
    module, tokens_BT = on_gpu(drawn(architecture, "heads of 15", n_layer=2)), tokens(2, 96).to(DEVICE)
    expected = learned(module, tokens_BT)
    module.compile(fullgraph=True)
    assert worst(off(learned(module, tokens_BT, bfloat16=True), expected)) < (3e-2,)


@pytest.mark.parametrize("width", [45, 504, 1030])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_the_norm_of_splits_in_one_kernel_is_a_norm_and_a_product(width, bias, expanded, cut):
    from krakenlm.models.fused_norm import split_layer_norm  # needs Triton

    generator = torch.Generator(DEVICE).manual_seed(0)

    def drawn_once(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE, requires_grad=True)

    x, weight_ND, bias_ND = drawn_once(1 if expanded else 3, 2, 777, width), drawn_once(3, width), drawn_once(3, width)
    # A product that was padded gives a gradient whose rows are further apart than they are wide.
    out_N, gradient = x.expand(3, -1, -1, -1), drawn_once(3, 2, 777, width + 3 * cut).detach()[..., :width]
    inputs = [x, weight_ND, bias_ND][: 3 if bias else 2]
    found = split_layer_norm(out_N, weight_ND, bias_ND if bias else None, 1e-5, torch.float32)
    expected = F.layer_norm(out_N, (width,), eps=1e-5) * weight_ND[:, None, None]
    expected = expected + bias_ND[:, None, None] if bias else expected
    for one, other in zip(
        [found, *torch.autograd.grad(found, inputs, gradient)],
        [expected, *torch.autograd.grad(expected, inputs, gradient)],
        strict=True,
    ):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_a_second_derivative_of_the_norm_of_splits_is_refused():
    from krakenlm.models.fused_norm import split_layer_norm  # needs Triton

    x, weight_ND = (torch.ones(3, *shape, 45, device=DEVICE, requires_grad=True) for shape in ((1, 4), ()))
    y = split_layer_norm(x, weight_ND, None, 1e-5, torch.float32)
    with pytest.raises(RuntimeError, match="create_graph: expected False"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
