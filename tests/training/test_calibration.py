"""The rate of a short training: as a training does it."""

import functools

import torch
from torch._dynamo.utils import counters

from krakenlm.training import calibration, module
from krakenlm.training.recipe import Recipe

SIZES = {"architecture": "standard", "n_layer": 1, "n_head": 1, "width": 8, "block_size": 4, "vocab_size": 64}


def test_every_update_sees_the_gradients_of_its_own_micro_batches_alone(paper, monkeypatch):
    cpu = {"gpus": 0, "precision": "32-true", "batch_sequences": 8, "micro_batch": 4}
    recipe = Recipe.from_dict(paper | cpu | {"compile": False})
    backwards, seen = [], []

    def loss(network, windows_BW):
        backwards.append(1)
        return sum(each.sum() for each in network.parameters())

    monkeypatch.setattr(module, "next_token_loss", loss)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, clip: seen.append(max(p.grad.max() for p in parameters))
    )
    assert calibration.training_rate(SIZES, recipe) > 0
    assert recipe.accumulation == 2
    assert len(backwards) == 2 * len(seen) > 0
    assert set(map(float, seen)) == {2.0}  # each backward pass adds 1


def test_however_many_models_are_measured_each_is_compiled(paper, monkeypatch):
    cpu = {"gpus": 0, "precision": "32-true", "batch_sequences": 4, "micro_batch": 4}
    recipe = Recipe.from_dict(paper | cpu | {"compile": True})
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for width in range(8, 88, 8):
        counters.clear()
        calibration.training_rate(SIZES | {"width": width}, recipe)
        assert counters["stats"]["unique_graphs"] == 1, width
