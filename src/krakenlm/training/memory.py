"""Out of memory, said in terms of the recipe: which micro-batch would fit."""

import contextlib
import resource
from collections.abc import Iterator, Mapping

import torch

from krakenlm.errors import InputError
from krakenlm.machine import host_memory
from krakenlm.training.recipe import Recipe


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors have taken on this process's GPU or, on a CPU, that the process has."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def explaining_memory(sizes: Mapping, recipe: Recipe) -> Iterator[None]:
    """Turn what torch raises where memory ends into one line with the micro-batch that would fit.

    Raises:
        InputError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        memory = memory_of_device(recipe)
        fitting = recipe.fitting_micro_batch(sizes, memory)
        advice = (
            f"{fitting} is estimated to fit; set it"
            if fitting
            else "no micro-batch is estimated to fit; take a device with more memory or a smaller model"
        )
        raise InputError(
            f"training.micro_batch: expected a micro-batch that fits in {memory / 1e9:.1f} GB, found "
            f"{recipe.micro_batch}, which ran out of memory; {advice}"
        ) from error


def memory_of_device(recipe: Recipe) -> int:
    """Bytes of this process's GPU or, on CPUs, its part of what the machine, a container and its own limit allow."""
    if recipe.gpus:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    memory = host_memory() // recipe.devices  # processes on CPUs share one memory
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return memory if limit == resource.RLIM_INFINITY else min(memory, limit)
