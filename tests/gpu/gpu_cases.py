"""Models of every architecture with widths and head sizes that kernels like, and that they do not."""

import copy
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm import models
from krakenlm.models.blocks import decays

DEVICE = "cuda"
ROOT = Path(__file__).parents[2]
VOCABULARY, BLOCK = 211, 160
ROWS = {
    "standard": {"architecture": "standard"},
    "standard-chunked": {"architecture": "standard"},
    "parallel": {"architecture": "parallel"},
    "ladder": {"architecture": "ladder"},
    "kraken-2": {"architecture": "kraken", "degree": 2},
    "kraken-4": {"architecture": "kraken", "degree": 4},
}
ARCHITECTURES = [row for row in ROWS if row != "standard-chunked"]
# (width, heads of a split, biases): heads of 15 and of 20 in widths that are no multiple of 8, and heads of 32.
SHAPES = {"heads of 15": (90, 6, True), "heads of 20": (100, 5, False), "heads of 32": (128, 4, False)}


def sizes(row: str, shape: str, n_layer: int = 3) -> dict:
    width, heads, bias = SHAPES[shape]
    chosen = ROWS[row]
    common = {"n_layer": n_layer, "vocab_size": VOCABULARY, "block_size": BLOCK, "bias": bias, "tied": not bias}
    return chosen | common | {"width": width, "n_head": heads * chosen.get("degree", 1)}


def drawn(row: str, shape: str, n_layer: int = 3, rank: int = 0, world: int = 1) -> nn.Module:
    """A rank's module on the CPU, its weights so large that attention and logits are far from even."""
    torch.manual_seed(0)
    module = models.build_rank(models.config_from_dict(sizes(row, shape, n_layer)), rank, world)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.1)
            if not decays(name) and not name.endswith("bias"):
                parameter.add_(1)
    if row == "standard-chunked":
        module.chunks = 2
    return module


def on_gpu(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    return copy.deepcopy(module).to(device=DEVICE, dtype=dtype)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def learned(module: nn.Module, tokens_BT: Tensor, bfloat16: bool = False) -> dict[str, Tensor]:
    """Logits and every gradient of next-token loss, float64 on the CPU."""
    module.zero_grad()
    with torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=bfloat16):
        logits_BTV = module(tokens_BT)
        loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
    loss.backward()
    found = {"logits": logits_BTV.detach()} | {name: each.grad for name, each in module.named_parameters()}
    return {name: each.double().cpu() for name, each in found.items()}


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far each tensor is from what was expected, relative to its norm or, where that is small, to the mean one."""
    assert found.keys() == expected.keys()
    norms = {name: each.norm().item() for name, each in expected.items()}
    least = 0.1 * sum(norms.values()) / len(norms)
    return {name: (found[name] - each).norm().item() / max(norms[name], least) for name, each in expected.items()}


def worst(differences: dict[str, float]) -> tuple[float, str]:
    """The largest difference and whose it is."""
    assert all(map(math.isfinite, differences.values())), differences
    return max((each, name) for name, each in differences.items())


def by_path(path: str) -> ModuleType:
    """A module of this repository that lies in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
