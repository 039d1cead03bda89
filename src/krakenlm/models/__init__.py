"""The architectures. A new one is a file beside these and a line in `ARCHITECTURES`.

A module names `Config`, a frozen dataclass; a class of its own name in capitals, built as (config, rank, world), which
maps (tokens_BT, comm, cache, at) to logits; and `shard`, which cuts a rank's tensors from the whole model's.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json, writing

if TYPE_CHECKING:  # torch takes seconds to import, and the sizing arithmetic does without
    from torch import Tensor, nn

    from krakenlm.models.blocks import Config

# Name -> class, in krakenlm.models.<name>.
ARCHITECTURES = {
    "standard": "Standard",
    "parallel": "Parallel",
    "ladder": "Ladder",
    "kraken": "Kraken",
}


def architecture_module(name: str) -> Any:
    """The architecture's module.

    Raises:
        InputError: there is no architecture of that name.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {name!r}; choose one")
    return importlib.import_module(f"krakenlm.models.{name}")


def config_from_dict(sizes: Mapping[str, Any]) -> "Config":
    """A checked configuration from the keys of a config.json.

    Raises:
        InputError: naming the key that is unknown, missing or wrong.
    """
    sizes = dict(sizes)
    kind = architecture_module(sizes.pop("architecture", None)).Config
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in sizes:
        if key not in known:
            raise InputError(f"{key}: unknown key of {kind.architecture}; expected {', '.join(known)}; remove it")
    for key, field in known.items():
        if key not in sizes and field.default is dataclasses.MISSING:
            raise InputError(f"{key}: expected a value for {kind.architecture}, found none; set it")
    return kind(**sizes)


def build_rank(config: "Config", rank: int = 0, world: int = 1) -> "nn.Module":
    """One rank of a model, shapes only: load into it what `shard` cut, or draw it on the device."""
    return getattr(architecture_module(config.architecture), ARCHITECTURES[config.architecture])(config, rank, world)


def build(sizes: Mapping[str, Any]) -> "nn.Module":
    """A whole model with the authors' initial weights, drawn from torch's generator."""
    from krakenlm.models.blocks import initialise

    config = config_from_dict(sizes)
    module = build_rank(config)
    initialise(module, config.n_layer, config.splits)
    return module


def shard(read: Callable[[str], "Tensor"], names: list[str], config: "Config", rank: int, world: int) -> dict:
    """{name: tensor} of one rank, from `read(name)`, which gives the whole model's tensors one at a time."""
    return architecture_module(config.architecture).shard(read, names, config, rank, world)


def save_model(module: "nn.Module", folder: str | Path) -> None:
    """Write model.safetensors, then config.json, into `folder`."""
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with writing(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    write_json(folder / "config.json", module.config.to_dict())


def load_model(folder: str | Path) -> "nn.Module":
    """The model in `folder` (config.json, model.safetensors), on the CPU, ready for evaluation.

    Raises:
        InputError: a file is missing, damaged, or of another configuration.
    """
    config = load_config(folder)
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / "model.safetensors"
    with torch.device("meta"):
        module = build_rank(config)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a model's weights, found none; train the model first") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected safetensors, found a damaged file ({error}); delete it and train again"
        ) from None
    difference = first_difference(module.state_dict(), weights)
    if difference:
        raise InputError(
            f"{path}: expected the weights of the {config.architecture} in config.json, found {difference}; "
            "put the two files of one model together, or train again"
        )
    module.load_state_dict(weights, assign=True)
    return module.eval()


def first_difference(expected: Mapping[str, "Tensor"], found: Mapping[str, "Tensor"]) -> str:
    """In words, the first tensor of `found` whose name or shape is not as expected; empty where there is none."""
    for name in sorted(found.keys() - expected.keys()):
        return f"{name}, which it has not"
    for name in sorted(expected.keys() - found.keys()):
        return f"no {name}"
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            return f"{name} of shape {tuple(found[name].shape)} in place of {tuple(tensor.shape)}"
    return ""


def load_config(folder: str | Path) -> "Config":
    """The checked configuration in `folder`/config.json.

    Raises:
        InputError: there is no such folder, or its config.json is missing, damaged or no model's.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: expected a model folder, found none; correct the path, or train or import a model")
    described = read_json(Path(folder) / "config.json")
    if "mapping" in described:
        raise InputError(
            f"{folder}: expected a model folder, found the shards of one; name the model they were cut from"
        )
    return config_from_dict(described)
