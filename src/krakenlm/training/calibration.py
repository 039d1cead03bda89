"""What this device can do, measured: at best, the rate that a training's own is a share of; and in a short training."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.models.sizing import training_flops_per_token
from krakenlm.training.recipe import Recipe

# Square matrices that keep a device busy for milliseconds, and how often: the best of them counts.
GPU_SIZE, CPU_SIZE, WARMUP, RUNS = 8192, 1024, 2, 10
# Of a short training, after a warm-up that compiles: its updates, and the most micro-batches of each.
UPDATES, MICRO_BATCHES = 4, 3


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, a multiply-add as two: the best of ten, with the threads that torch has."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    taken = [seconds(lambda: torch.mm(a, b), device) for _ in range(WARMUP + RUNS)]
    return 2 * size**3 / min(taken[WARMUP:])


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def training_rate(sizes: Mapping, recipe: Recipe) -> float:
    """FLOP/s of one device that trains a model of these sizes by the recipe: its micro-batches and updates, timed.

    What devices exchange is not in it, nor reading tokens, logging and saving.

    Raises:
        InputError: the recipe trains on GPUs, and there is none.
    """
    from krakenlm.training.module import adamw, training_loss
    from krakenlm.training.trainer import reproducible

    if recipe.gpus and not torch.cuda.is_available():
        raise InputError(
            "training.gpus: expected a GPU to measure on, found none; measure where there is one, or leave --measure "
            "out and state a share of the peak"
        )
    device = torch.device("cuda" if recipe.gpus else "cpu")
    torch.compiler.reset()  # of one function PyTorch compiles eight models, and runs any other eager
    with reproducible(recipe):
        network = models.build(sizes).to(device)
        optimizer, loss_of = adamw(network, recipe), training_loss(recipe)
        windows_BW = torch.randint(sizes["vocab_size"], (recipe.micro_batch, sizes["block_size"] + 1), device=device)

        def micro_batch() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
                loss = loss_of(network, windows_BW)
            loss.backward()

        def update() -> None:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()

        # As a training does it: gradients of a few micro-batches are added up, used and dropped.
        backward, updating = [], []
        for _ in range(WARMUP + UPDATES):
            count = min(recipe.accumulation, MICRO_BATCHES)
            backward.append(statistics.mean(seconds(micro_batch, device) for _ in range(count)))
            updating.append(seconds(update, device))
    tokens = recipe.accumulation * windows_BW[:, 1:].numel()
    taken = recipe.accumulation * statistics.median(backward[WARMUP:]) + statistics.median(updating[WARMUP:])
    return tokens * training_flops_per_token(sizes) / taken
