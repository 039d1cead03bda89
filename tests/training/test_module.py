"""One update against AdamW computed by hand."""

import math

import pytest
import torch

from krakenlm import models
from krakenlm.training.module import LanguageModel, adamw
from krakenlm.training.recipe import Recipe

KRAKEN = {"architecture": "kraken", "degree": 2, "n_layer": 2, "n_head": 2, "width": 8, "block_size": 4}


def test_matrices_and_embeddings_decay_and_the_weights_of_layer_norms_do_not(paper):
    decay, rest = adamw(models.build(KRAKEN | {"vocab_size": 64}), Recipe.from_dict(paper)).param_groups
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    # Embeddings (64 + 4) x 8; 2 layers of 2 splits of 8 d^2; the merge 2 d^2.
    assert sum(parameter.numel() for parameter in decay["params"]) == 68 * 8 + 2 * 2 * 8 * 64 + 2 * 64
    # Two norms a layer and split, one at the end.
    assert sum(parameter.numel() for parameter in rest["params"]) == 2 * 2 * 2 * 8 + 8
    assert decay["betas"] == (0.9, 0.95)
    assert decay["eps"] == 1e-8


@pytest.mark.parametrize("fused", [False, True])
def test_two_updates_are_those_computed_by_hand(paper, fused):
    """Warm-up, clipping, moments and decay together, on one decaying weight and one that does not."""
    recipe = Recipe.from_dict(paper | {"fused": fused})
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    network.norm = torch.nn.Parameter(torch.tensor([3.0]))
    module = LanguageModel(network, recipe, seed=0)
    optimizer = module.configure_optimizers()
    moments = {"weight": [0.0, 0.0], "norm": [0.0, 0.0]}
    expected = {"weight": 2.0, "norm": 3.0}
    # The first gradient has norm 5 and is clipped to 1, the second has norm 0.5 and stays.
    for update, gradients in enumerate([{"weight": 3.0, "norm": 4.0}, {"weight": 0.3, "norm": -0.4}], start=1):
        rate = 2.5e-4 * (1000 + update) / 2000  # steps 1001 and 1002
        network.weight.grad = torch.tensor([[gradients["weight"]]])
        network.norm.grad = torch.tensor([gradients["norm"]])
        module.micro_losses.append(torch.tensor(1.0))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(1000 + update)
        module.configure_gradient_clipping(optimizer, None, None)
        optimizer.step()
        norm = math.hypot(*gradients.values())
        for name, gradient in gradients.items():
            clipped = gradient / max(1.0, norm)
            first, second = moments[name]
            moments[name] = first, second = 0.9 * first + 0.1 * clipped, 0.95 * second + 0.05 * clipped**2
            step = (first / (1 - 0.9**update)) / (math.sqrt(second / (1 - 0.95**update)) + 1e-8)
            expected[name] = expected[name] * (1 - rate * (0.1 if name == "weight" else 0.0)) - rate * step
    assert network.weight.item() == pytest.approx(expected["weight"], rel=1e-6)
    assert network.norm.item() == pytest.approx(expected["norm"], rel=1e-6)
    assert module.pending[0].tolist() == pytest.approx([1.0, 5.0])
