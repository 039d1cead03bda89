"""What this device can do at best, measured: the rate that a training's own is a share of."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

# Square matrices that keep a device busy for milliseconds, and how often: the best of them counts.
GPU_SIZE, CPU_SIZE, WARMUP, RUNS = 8192, 1024, 2, 10


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, a multiply-add as two: the best of ten, with the threads that torch has."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    taken = [seconds(lambda: torch.mm(a, b), device) for _ in range(WARMUP + RUNS)]
    return 2 * size**3 / min(taken[WARMUP:])


def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Wall time of a call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
