"""A model's weights, one file per rank, in TensorRT-LLM's checkpoint layout: config.json and rank<r>.safetensors.

config.json has the keys that TensorRT-LLM's PretrainedConfig reads (release 0.12, tensorrt_llm/models/
modeling_utils.py), and under `krakenlm` the model's own configuration. Heads are padded to a size that its kernels
take; the PyTorch engine strips the padding when it loads a rank.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.files import read_json, refuse_other_files, write_json, writing_folder
from krakenlm.machine import return_freed_memory
from krakenlm.models.blocks import INITIAL_STD, LAYER_NORM_EPS, Config, decays
from krakenlm.models.products import pack
from krakenlm.models.sizing import ffn_expansion
from krakenlm.values import Dtype

# Head sizes that both of TensorRT-LLM's attention kernels take: prefill (fmha_supported in kernels/
# contextFusedMultiHeadAttention/fmhaRunner.cpp) and decode (kernels/decoderMaskedMultiheadAttention.cu).
HEAD_SIZES = (32, 64, 80, 96, 104, 128, 160, 192, 256)

# What an engine's weights may be.
DTYPES = get_args(Dtype)

# The class that TensorRT-LLM builds an engine of; standard is its own, the others are in tensorrt/definitions.py. An
# architecture that is not written there has shards for the PyTorch engine alone.
TENSORRT_CLASSES = {
    "standard": "GPTForCausalLM",
    "parallel": "KrakenlmParallelForCausalLM",
    "ladder": "KrakenlmLadderForCausalLM",
    "kraken": "KrakenlmKrakenForCausalLM",
}

# What a folder of shards holds; one with anything else is not replaced.
SHARD_OF = "krakenlm_shard_of"  # key of a file's metadata: the model's identity and the rank
FILES = ("config.json", "rank*.safetensors")
# What every rank has whole: the embeddings, since a tied head is a view of the token embedding, whose rows a rank
# multiplies by vocabulary. An untied head is stored in parts.
REPLICATED = ("embedding.tokens", "embedding.positions")


def padded_head_size(head_size: int) -> int:
    """The next of HEAD_SIZES; a head that is larger than all of them stays as it is, for the PyTorch engine alone."""
    return next((size for size in HEAD_SIZES if size >= head_size), head_size)


def resize_heads(name: str, tensor: Tensor, heads: int, found: int, wanted: int) -> Tensor:
    """A tensor whose `heads` heads of size `found` have the size `wanted`; what is no head's stays as it is.

    Heads are rows of what makes q, k and v, and columns of the projection out of attention; Parallel's hidden layer
    lies behind them in the same matrices. More rows and columns are zeros, which change no result.
    """
    if ".qkv" in name:
        dim, heads = -2 if name.endswith("weight") else -1, 3 * heads
    elif name.endswith(".out.weight"):
        dim = -1
    else:
        return tensor
    of_heads, others = tensor.split([heads * found, tensor.shape[dim] - heads * found], dim)
    by_head = of_heads.movedim(dim, -1).unflatten(-1, (heads, found))
    resized = F.pad(by_head, (0, wanted - found)).flatten(-2).movedim(-1, dim)
    return torch.cat([resized, others], dim)


def checkpoint_config(config: Config, tp: int, dtype: str = "float32") -> dict:
    """What config.json of a sharded model says: fields of TensorRT-LLM's PretrainedConfig, and ours in `krakenlm`.

    Heads count over all ranks and splits, since TensorRT-LLM divides them by tp_size; `hidden_size` and
    `intermediate_size` are those of one split, the widths that activations have. Its attention divides by
    sqrt(head_size) x q_scaling.
    """
    padded = padded_head_size(config.head_size)
    described = {
        "architecture": TENSORRT_CLASSES.get(config.architecture, config.architecture),
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": ffn_expansion(config.to_dict()) * config.width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_size": padded,
        "q_scaling": math.sqrt(config.head_size / padded),
        "hidden_act": "gelu",
        "norm_epsilon": LAYER_NORM_EPS,
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": config.block_size,
        "bias": config.bias,
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
        "krakenlm": config.to_dict(),
    }
    return described if config.splits == 1 else described | {"degree": config.splits}


def write_shards(model: str | Path, out: str | Path, tp: int, dtype: str = "float32") -> None:
    """Cut the model in folder `model` for `tp` ranks into folder `out`, which appears whole or not at all.

    Args:
        dtype: one of DTYPES, that the weights are written in and an engine computes in.

    Raises:
        InputError: the model is damaged, or cannot be divided over `tp` ranks, or there is no such dtype.
    """
    check_dtype(dtype)
    model, out = Path(model), Path(out)
    refuse_other_files(out, FILES)
    config = models.load_config(model)
    modules = [empty_rank(config, rank, tp) for rank in range(tp)]
    described = checkpoint_config(config, tp, dtype)
    with open_weights(model / "model.safetensors") as weights:
        check_weights(model, weights, config)
        described["identity"] = identity(described, model / "model.safetensors")
        with writing_folder(out) as folder:
            for rank, module in enumerate(modules):
                tensors = models.shard(weights.get_tensor, list(weights.keys()), config, rank, tp)
                tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
                write_rank(folder, rank, tensors, module, described)
            write_json(folder / "config.json", described)


def identity(described: dict, weights: Path) -> str:
    """Hash of what makes shards those of one model over one number of ranks: configuration and weights."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    with open(weights, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()[:16]


def write_rank(folder: Path, rank: int, tensors: dict[str, Tensor], module: nn.Module, described: dict) -> None:
    """Write one rank's file, its heads padded, with the model's identity and the rank in its metadata."""
    sizes = module.config.head_size, described["head_size"]
    padded = {name: resize_heads(name, tensor, module.heads, *sizes).contiguous() for name, tensor in tensors.items()}
    # One key: of several, safetensors writes the order anew each time, and equal shards would have other bytes.
    metadata = {SHARD_OF: f"{described['identity']} {rank}"}
    save_file(padded, folder / f"rank{rank}.safetensors", metadata=metadata)


def check_dtype(dtype: str) -> None:
    """Refuse what no engine computes in.

    Raises:
        InputError: naming those that work.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype}; choose one")


def write_random_shards(config: Config, out: str | Path, tp: int, seed: int, dtype: str = "float32") -> None:
    """Write shards that are a configuration and a seed: every rank draws its weights on its device when it loads.

    Raises:
        InputError: the model cannot be divided over `tp` ranks, or there is no such dtype.
    """
    check_dtype(dtype)
    refuse_other_files(Path(out), FILES)
    for rank in range(tp):
        empty_rank(config, rank, tp)
    with writing_folder(out) as folder:
        write_json(folder / "config.json", checkpoint_config(config, tp, dtype) | {"seed": seed})


def empty_rank(config: Config, rank: int, world: int) -> nn.Module:
    """One rank's module, shapes only."""
    with torch.device("meta"):
        return models.build_rank(config, rank, world)


@torch.no_grad()
def random_rank(config: Config, rank: int, world: int, seed: int, device: str, dtype: torch.dtype) -> nn.Module:
    """One rank's module with random weights, drawn on `device`: no machine or disk has to hold the whole model.

    What all ranks have whole (embeddings, LayerNorms) is equal on all of them; the rest differs. Other numbers of
    ranks are other models.
    """
    module = empty_rank(config, rank, world).to(dtype).to_empty(device=device)
    whole, own = (torch.Generator(device).manual_seed(each) for each in (seed, seed + 1 + rank))
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif not decays(name):
            parameter.fill_(1)
        else:
            parameter.normal_(std=INITIAL_STD, generator=whole if name in REPLICATED else own)
    return module.eval()


def as_engine(module: nn.Module) -> nn.Module:
    """A rank's module as an engine runs it: its products' weights packed, and their memory given back.

    See krakenlm.models.products.pack: the module can do nothing but compute.
    """
    pack(module)
    return_freed_memory()
    return module


def open_weights(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path}: expected weights, found none; run the stage that writes them") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected safetensors, found a damaged file ({error}); delete it and run again"
        ) from None


def check_shapes(where: Path, tensors: dict[str, Tensor], module: nn.Module) -> None:
    """Refuse tensors that are not the module's.

    Raises:
        InputError: naming the first that differs.
    """
    difference = models.first_difference(module.state_dict(), tensors)
    if difference:
        raise InputError(
            f"{where}: expected the weights of the {module.config.architecture} in config.json, found {difference}; "
            "put the files of one model together, or train or shard again"
        )


def check_weights(model: Path, weights: safe_open, config: Config) -> None:
    """The same for a whole model's file, before a tensor of it is read or cut."""
    shapes = {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in weights.keys()}  # noqa: SIM118
    check_shapes(model, shapes, empty_rank(config, 0, 1))


def load_rank(
    folder: str | Path, rank: int, world: int, device: str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """One rank's module from a folder of shards, on `device`, padding of its heads stripped.

    Args:
        dtype: of weights and results; that of the shards if None.

    Raises:
        InputError: the folder holds shards for another number of ranks, or a missing, damaged or foreign file.
    """
    folder = Path(folder)
    described = read_description(folder, world)
    config = models.config_from_dict(described["krakenlm"])
    if dtype is None:
        check_dtype(described["dtype"])
        dtype = getattr(torch, described["dtype"])
    if "seed" in described:
        return random_rank(config, rank, world, described["seed"], device, dtype)
    module = empty_rank(config, rank, world)
    path = folder / f"rank{rank}.safetensors"
    check_shard(path, rank, described["identity"])
    tensors = load_file(path, device=device)
    sizes = described["head_size"], config.head_size
    tensors = {name: resize_heads(name, tensor, module.heads, *sizes) for name, tensor in tensors.items()}
    check_shapes(path, tensors, module)
    module.load_state_dict(tensors, assign=True)
    return module.to(dtype).eval()


def cut_rank(model: str | Path, rank: int, world: int, device: str = "cpu") -> nn.Module:
    """One rank's module straight from a model folder, without shards on the disk.

    Raises:
        InputError: the model is damaged, or cannot be divided over `world` ranks.
    """
    model = Path(model)
    config = models.load_config(model)
    module = empty_rank(config, rank, world)
    with open_weights(model / "model.safetensors") as weights:
        check_weights(model, weights, config)
        tensors = models.shard(weights.get_tensor, list(weights.keys()), config, rank, world)
    module.load_state_dict({name: tensor.to(device) for name, tensor in tensors.items()}, assign=True)
    return module.eval()


def check_shards(folder: str | Path, world: int) -> None:
    """Refuse, before a rank starts, a folder that its rank could not load; no tensor is read.

    Raises:
        InputError: the folder holds shards for another number of ranks, or a missing, damaged or foreign file.
    """
    described = read_description(Path(folder), world)
    for rank in range(0 if "seed" in described else world):
        check_shard(Path(folder) / f"rank{rank}.safetensors", rank, described["identity"])


def read_description(folder: Path, world: int) -> dict:
    """config.json of shards, which have to be for `world` ranks."""
    described = read_json(folder / "config.json")
    if "krakenlm" not in described:
        raise InputError(f"{folder}: expected shards, found a config.json without krakenlm; make them: krakenlm shard")
    found = described.get("mapping", {}).get("tp_size")
    if found != world:
        raise InputError(
            f"{folder}: expected shards for {world} ranks, found them for {found}; shard with --tp {world}"
        )
    return described


def check_shard(path: Path, rank: int, identity: str) -> None:
    """Refuse what is not rank `rank` of the model that config.json identifies."""
    with open_weights(path) as weights:
        found, _, found_rank = (weights.metadata() or {}).get(SHARD_OF, "none").partition(" ")
    if found != identity:
        raise InputError(
            f"{path}: expected a shard of model {identity} (config.json), found one of {found}; shard again"
        )
    if found_rank != str(rank):
        raise InputError(f"{path}: expected rank {rank}, found rank {found_rank}; shard again")
