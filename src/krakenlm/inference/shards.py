"""A model's weights, one file per rank, in TensorRT-LLM's checkpoint layout: config.json and rank<r>.safetensors.

config.json has the keys that TensorRT-LLM's PretrainedConfig reads (release 0.12, tensorrt_llm/models/
modeling_utils.py), and under `krakenlm` the model's own configuration.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.files import explaining_full_disk, read_json, sync, write_json
from krakenlm.models.blocks import Config


def checkpoint_config(config: Config, tp: int) -> dict:
    """What config.json of a sharded model says."""
    return {
        "architecture": f"Krakenlm{models.ARCHITECTURES[config.architecture]}ForCausalLM",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "head_size": config.head_size,
        "hidden_act": "gelu",
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": config.block_size,
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
        "krakenlm": config.to_dict(),
    }


def write_shards(model: str | Path, out: str | Path, tp: int) -> None:
    """Cut the model in folder `model` for `tp` ranks into folder `out`, which appears whole or not at all.

    Raises:
        InputError: the model is damaged, or cannot be divided over `tp` ranks.
    """
    model, out = Path(model), Path(out)
    config = models.load_config(model)
    with torch.device("meta"):
        expected = [models.build_rank(config, rank, tp).state_dict() for rank in range(tp)]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    for leftover in out.parent.glob(f".{out.name}.*.part"):  # of a killed writer: this one holds the output's lock
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        with explaining_full_disk(out), open_weights(model / "model.safetensors") as weights:
            for rank in range(tp):
                tensors = models.shard(weights.get_tensor, list(weights.keys()), config, rank, tp)
                check_shapes(model, tensors, expected[rank])
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()},
                    temporary / f"rank{rank}.safetensors",
                )
                sync(temporary / f"rank{rank}.safetensors")
        write_json(temporary / "config.json", checkpoint_config(config, tp))
        if out.exists():
            shutil.rmtree(out)
        os.rename(temporary, out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_weights(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path}: expected weights, found none; run the stage that writes them") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected safetensors, found a damaged file ({error}); delete it and run again"
        ) from None


def check_shapes(where: Path, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        name = differing[0]
        raise InputError(
            f"{where}: expected {name} of shape {wanted.get(name)}, found {found.get(name)}; the weights are not those "
            "of config.json: train or shard again"
        )


def load_rank(folder: str | Path, rank: int, world: int, device: str = "cpu") -> nn.Module:
    """One rank's module from a folder of shards, on `device`.

    Raises:
        InputError: the folder holds shards for another number of ranks, or a damaged file.
    """
    folder = Path(folder)
    described = read_json(folder / "config.json")
    found = described.get("mapping", {}).get("tp_size")
    if found != world:
        raise InputError(
            f"{folder}: expected shards for {world} ranks, found them for {found}; shard with --tp {world}"
        )
    config = models.config_from_dict(described["krakenlm"])
    with torch.device("meta"):
        module = models.build_rank(config, rank, world)
    path = folder / f"rank{rank}.safetensors"
    with open_weights(path):
        tensors = load_file(path, device=device)
    check_shapes(path, tensors, module.state_dict())
    module.load_state_dict(tensors, assign=True)
    return module.eval()
