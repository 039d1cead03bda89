"""Weights from elsewhere as a model folder like one that was trained here. Nothing is unpickled but tensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.files import copy, read_json, write_json
from krakenlm.models.blocks import LAYER_NORM_EPS
from krakenlm.models.sizing import parameter_count
from krakenlm.models.standard import FFN_EXPANSION
from krakenlm.text.tokenizer import merged_pairs

COMPILED_PREFIX = "_orig_mod."
# Their names within a layer -> ours. GPT-2's and the authors' (which derive from nanoGPT) agree.
LAYER_NAMES = {
    "ln_1": "norm1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
# Causal masks, which some versions of PyTorch and transformers made them keep among the weights, and the tied head.
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
# What metrics.json says of a training, wherever that was.
ABOUT_TRAINING = ("seed", "steps", "tokens_seen", "recipe", "tokens")
AUTHORS_KEYS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "n_heads_in_split")


def import_authors(checkpoint: str | Path, out: str | Path, tokenizer: str | Path | None = None) -> None:
    """Read a checkpoint of the authors' release (training/train.py: model, model_args, ...) into a model folder.

    Raises:
        InputError: the file is not such a checkpoint, or its tensors do not fit its model_args.
    """
    path = Path(checkpoint)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a checkpoint, found none; correct the path") from None
    except OSError as error:  # a folder, a file of another user's
        raise InputError(f"{path}: expected a checkpoint, found none to read ({error.strerror}); name a file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a checkpoint of tensors alone, found {reason}; it was not read") from None
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected the keys model and model_args, found {found}; give the authors' ckpt.pt")
    sizes, saved = authors_sizes(path, content["model_args"]), content["model"]
    if not isinstance(saved, dict) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        raise InputError(
            f"{path}: expected model to be tensors by name, found something else; give the authors' ckpt.pt"
        )
    state = {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in saved.items()}
    weights = authors_weights(path, state, sizes)
    write_model(path, sizes, weights, out, tokenizer, source=f"the authors' release, {path.name}")


def authors_sizes(path: Path, arguments: Mapping) -> dict:
    """Our sizes from their model_args."""
    arguments = arguments if isinstance(arguments, dict) else {}
    missing = [key for key in AUTHORS_KEYS if key not in arguments]
    if missing:
        found = ", ".join(map(str, arguments)) or "none"
        raise InputError(f"{path}: expected model_args.{missing[0]}, found {found}; not a Kraken's")
    heads, per_split = arguments["n_head"], arguments["n_heads_in_split"]
    if not (isinstance(heads, int) and isinstance(per_split, int) and per_split > 0 and heads % per_split == 0):
        raise InputError(
            f"{path}: expected model_args.n_heads_in_split to divide n_head ({heads!r}), found {per_split!r}; the file "
            "does not fit its own description"
        )
    sizes = {
        "architecture": "kraken",
        "degree": heads // per_split,
        "n_layer": arguments["n_layer"],
        "n_head": heads,
        "width": arguments["n_embd"],
        "vocab_size": arguments["vocab_size"],
        "block_size": arguments["block_size"],
        "bias": bool(arguments["bias"]),
        "ffn_expansion": arguments.get("ffn_expansion", 2),
    }
    return checked(path, sizes)


def authors_weights(path: Path, state: Mapping[str, Tensor], sizes: Mapping) -> dict[str, Tensor]:
    """Their tensors under our names: splits side by side, the last linear by its column blocks."""
    take = Taker(path, state)
    kinds = ("weight", "bias") if sizes["bias"] else ("weight",)
    weights = {
        "embedding.tokens": take("transformer.wte.weight"),
        "embedding.positions": take("transformer.wpe.weight"),
    }
    for layer in range(sizes["n_layer"]):
        for theirs, ours in LAYER_NAMES.items():
            for kind in kinds:
                names = [f"transformer.h.{split}.{layer}.{theirs}.{kind}" for split in range(sizes["degree"])]
                weights[f"layers.{layer}.{ours}.{kind}"] = torch.stack([take(name) for name in names])
    merge = take("transformer.conjunction.weight")
    weights["merge.weight"] = torch.stack(merge.chunk(sizes["degree"], dim=1))
    if sizes["bias"]:
        weights["merge_bias"] = take("transformer.conjunction.bias")
    for kind in kinds:
        weights[f"norm.{kind}"] = take(f"transformer.ln_f.{kind}")
    take.refuse_others()
    return weights


def import_model(source: str | Path, out: str | Path, tokenizer: str | Path | None = None) -> None:
    """Read a model folder of this project's.

    Raises:
        InputError: it is none, is damaged, or its tokenizer is not `tokenizer`.
    """
    source = Path(source)
    module = models.load_model(source)
    own = source / "tokenizer.json"
    weights = dict(module.state_dict())
    trained = read_json(source / "metrics.json") if (source / "metrics.json").is_file() else {}
    write_model(
        source / "model.safetensors", module.config.to_dict(), weights, out,
        chosen_tokenizer(own if own.is_file() else None, tokenizer),
        source=f"the model folder {source.name}" + (f", made from {trained['source']}" if "source" in trained else ""),
        trained={key: trained[key] for key in ABOUT_TRAINING if key in trained},
    )  # fmt: skip


def import_gpt2(source: str, out: str | Path, tokenizer: str | Path | None = None) -> None:
    """Read a Hugging Face GPT-2 (config.json, model.safetensors, tokenizer.json) from a folder or, by name, the hub.

    A name may end in @revision. `tokenizer` stands in for a missing tokenizer.json, and has to equal one that is there.

    Raises:
        InputError: a file is missing or damaged, or it is another architecture's.
    """
    folder = Path(source) if Path(source).is_dir() else fetch_gpt2(source)
    sizes = gpt2_sizes(folder / "config.json")
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected weights, found none; give a folder with model.safetensors") from None
    except SafetensorError as error:
        raise InputError(f"{path}: expected safetensors, found a damaged file ({error}); fetch it again") from None
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    own = folder / "tokenizer.json"
    kept = chosen_tokenizer(own if own.is_file() else None, tokenizer)
    weights = gpt2_weights(path, state, sizes)
    write_model(path, sizes, weights, out, kept, source=f"GPT-2, {source}")


def gpt2_sizes(path: Path) -> dict:
    """Our sizes from a Hugging Face GPT-2's config.json.

    Raises:
        InputError: it is another architecture's, or a GPT-2 whose forward pass is not the published one.
    """
    config = read_json(path)
    if config.get("model_type") != "gpt2":
        raise InputError(f"{path}: expected model_type gpt2, found {config.get('model_type')!r}; give a GPT-2")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
        if key not in config:
            raise InputError(f"{path}: expected {key}, found none; give a whole config.json")
    # Left out of a config.json, each of these has the first value.
    published = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (LAYER_NORM_EPS,),
        "n_inner": (None, FFN_EXPANSION * config["n_embd"]),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, values in published.items():
        if config.get(key, values[0]) not in values:
            raise InputError(
                f"{path}: expected {key} {' or '.join(map(repr, values))}, as in the published GPT-2, found "
                f"{config[key]!r}; such a model cannot be read"
            )
    sizes = {
        "architecture": "standard",
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "width": config["n_embd"],
        # Not padded: GPT-2's logits lie far below zero, and rows of zeros would take all the probability.
        "vocab_size": config["vocab_size"],
        "block_size": config["n_positions"],
        "bias": True,
        "tied": config.get("tie_word_embeddings", True),
    }
    return checked(path, sizes)


def fetch_gpt2(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = ["config.json", "model.safetensors", "tokenizer.json"]
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: expected a folder or a GPT-2 of the hub, found neither ({reason}); correct the name"
        ) from None


def chosen_tokenizer(own: str | Path | None, given: str | Path | None) -> str | Path | None:
    """The tokenizer that goes with the weights: their own, or the one given where they have none.

    Raises:
        InputError: both are there and turn text into different ids.
    """
    if own is None or given is None:
        return own or given
    theirs, ours = (read_json(Path(path))["model"] for path in (own, given))
    if (theirs["vocab"], merged_pairs(theirs)) != (ours["vocab"], merged_pairs(ours)):
        raise InputError(
            f"{own}: expected the vocabulary and merges of {given}, found others; compare a model only on the tokens "
            "that it was trained for"
        )
    return own


def gpt2_weights(path: Path, state: Mapping[str, Tensor], sizes: Mapping) -> dict[str, Tensor]:
    """Their tensors under our names: products are stored (in, out) there, (out, in) here."""
    take = Taker(path, state)
    weights = {"embedding.tokens": take("wte.weight"), "embedding.positions": take("wpe.weight")}
    for layer in range(sizes["n_layer"]):
        for theirs, ours in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                tensor = take(f"h.{layer}.{theirs}.{kind}")
                weights[f"layers.{layer}.{ours}.{kind}"] = tensor.T if tensor.dim() == 2 else tensor
    for kind in ("weight", "bias"):
        weights[f"norm.{kind}"] = take(f"ln_f.{kind}")
    if not sizes["tied"]:
        weights["embedding.head"] = take("lm_head.weight")
    take.refuse_others()
    return weights


def checked(path: Path, sizes: dict) -> dict:
    """`sizes`, once they are known to be those of a model."""
    try:
        models.config_from_dict(sizes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return sizes


class Taker:
    """Hands out a file's tensors by their names there, and knows which are left."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        self.path, self.state, self.left = path, state, set(state)

    def __call__(self, name: str) -> Tensor:
        """The tensor in float32."""
        if name not in self.state:
            raise InputError(
                f"{self.path}: expected the tensor {name}, found {len(self.state)} others; it is another model's file"
            )
        self.left.discard(name)
        return self.state[name].float()

    def refuse_others(self) -> None:
        """Raises InputError where a weight has not been taken: a file of more layers or splits than it says."""
        others = sorted(name for name in self.left if not name.endswith(NO_WEIGHTS))
        if others:
            raise InputError(
                f"{self.path}: expected no tensor that its configuration does not know, found {others[0]} and "
                f"{len(others) - 1} more; the file does not fit its own description"
            )


def write_model(
    path: Path,
    sizes: dict,
    weights: dict[str, Tensor],
    out: str | Path,
    tokenizer: str | Path | None,
    source: str,
    trained: Mapping = MappingProxyType({}),
) -> None:
    """Check the shapes and write a model folder; tokenizer.json only where there is one.

    Args:
        trained: what is known of the training, by the names of metrics.json.
    """
    config = models.config_from_dict(sizes)
    with torch.device("meta"):
        module = models.build_rank(config)
    for name, parameter in module.state_dict().items():
        if weights[name].shape != parameter.shape:
            raise InputError(
                f"{path}: expected {name} of shape {tuple(parameter.shape)} by its configuration, found "
                f"{tuple(weights[name].shape)}; the file does not fit its own description"
            )
    module.load_state_dict(weights, assign=True)
    out = Path(out)
    models.save_model(module, out)
    if tokenizer is not None:
        copy(tokenizer, out / "tokenizer.json")
    # What was not trained here has no curve, and took no time here.
    metrics = dict.fromkeys(("seed", "steps", "tokens_seen"), "") | dict(trained)
    metrics |= {"parameters": parameter_count(sizes), "source": source}
    write_json(out / "metrics.json", metrics | {"curve": [], "validation": [], "timings": {"seconds": 0.0}})
