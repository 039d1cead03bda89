"""Models that do not fit: fewer layers are timed, and what each layer takes stands for those that are missing."""

import bisect
import copy
from collections.abc import Callable

import numpy as np
from torch import nn

from krakenlm.errors import InputError

# The depth that a deeper one is compared with. The last layers of some architectures do less than the others: both
# depths have them, so that their difference is of whole layers.
SHALLOW = 2


def layers_that_fit(n_layer: int, needed: Callable[[int], float], available: float) -> int:
    """The most layers, up to `n_layer`, of which models need no more than `available` bytes.

    Args:
        needed: bytes of all models of so many layers, and of a shallow copy of each if they are fewer than n_layer.

    Raises:
        InputError: not even one layer more than the shallow copies have.
    """
    if needed(n_layer) <= available:
        return n_layer
    counts = range(SHALLOW + 1, n_layer)
    fitting = bisect.bisect_right(counts, available, key=needed)
    if not fitting:
        fewest = min(n_layer, SHALLOW + 1)
        raise InputError(
            f"size: expected models of which {fewest} layers fit a rank's memory ({available / 1e9:.3g} GB) together, "
            f"found {needed(fewest) / 1e9:.3g} GB; choose a smaller size, fewer architectures or more ranks"
        )
    return counts[fitting - 1]


def shallow(module: nn.Module) -> nn.Module:
    """The model of the first SHALLOW of a model's layers, which shares its weights."""
    fewer = copy.copy(module)
    fewer._modules = dict(module._modules)  # a copy shares the table of its parts with the original
    fewer.layers = module.layers[:SHALLOW]
    return fewer


def deepened(milliseconds: list[float], of_shallow: list[float], layers: int, n_layer: int) -> list[float]:
    """What runs of `layers` layers would have taken with `n_layer`, from runs of SHALLOW layers timed in turns."""
    times, fewer = np.asarray(milliseconds), np.asarray(of_shallow)
    return (times + (n_layer - layers) * (times - fewer) / (layers - SHALLOW)).tolist()
