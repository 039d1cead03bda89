"""A model folder as one that transformers loads with its own source: weights, code, tokenizer, card."""

import ast
import re
import shutil
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.export.card import write_card
from krakenlm.files import write_json, write_text, writing_folder
from krakenlm.models.importing import chosen_tokenizer
from krakenlm.text.tokenizer import END_OF_TEXT, end_token, load_tokenizer

PACKAGE = Path(models.__file__).parents[1]
MODELING = "modeling_krakenlm"
# The line of modeling_krakenlm.py that names the architecture; how a line begins that imports from this project.
ARCHITECTURE_IMPORT = "from krakenlm.models.kraken import Kraken as Architecture"
OWN_IMPORT = re.compile(r"^from krakenlm(?:\.models)?(\.\w+)? import ", re.MULTILINE)


def export_huggingface(
    model: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    scores: str | Path | None = None,
    run: str = "",
    weights_license: str | None = None,
) -> None:
    """Write folder `out`, which AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True) loads.

    The code in it is this project's own, its imports made relative; it needs torch and transformers alone.

    Args:
        model: model folder.
        out: a folder that does not exist yet; it appears whole or not at all.
        tokenizer: tokenizer.json for a model that has none; equal to the model's own otherwise.
        scores: folder with perplexity.csv and superglue.csv; their rows of `run` go into the card.
        weights_license: identifier of the weights' license for the card.

    Raises:
        InputError: `out` exists, `model` is no model folder, or the tokenizer is missing or does not fit.
    """
    model, out = Path(model), Path(out)
    if out.exists():
        raise InputError(f"{out}: expected a folder that does not exist yet, found one; remove it or choose another")
    module = models.load_model(model)
    vocabulary_file = model / "tokenizer.json"
    chosen = chosen_tokenizer(vocabulary_file if vocabulary_file.is_file() else None, tokenizer)
    if chosen is None:
        raise InputError(f"{vocabulary_file}: expected a tokenizer, found none; give the model's with --tokenizer")
    vocabulary = load_tokenizer(chosen)
    check_vocabulary(chosen, vocabulary, module.config.vocab_size)
    with writing_folder(out) as folder:
        write_source(folder, module.config.architecture)
        write_weights(folder, module, end_token(vocabulary, str(chosen)), vocabulary.get_vocab_size())
        write_tokenizer(folder, chosen, module.config.block_size)
        write_card(folder, out.name, model, module.config, scores, run, weights_license)


def check_vocabulary(path: str | Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.get_vocab_size() > vocab_size:
        raise InputError(
            f"{path}: expected at most {vocab_size} tokens, the model's vocab_size, found "
            f"{tokenizer.get_vocab_size()}; give the model its own tokenizer"
        )


def write_source(folder: Path, architecture: str) -> None:
    """Copy the file of the transformers model and, one after another, those of this project that a copied one imports.

    All come to lie in `folder` itself, so every import becomes one from beside.
    """
    own = f"from krakenlm.models.{architecture} import {models.ARCHITECTURES[architecture]} as Architecture"
    waiting, written = [f"krakenlm.export.{MODELING}"], set()
    while waiting:
        module = waiting.pop()
        if module in written:
            continue
        text = source_file(module).read_text(encoding="utf-8").replace(ARCHITECTURE_IMPORT, own)
        waiting += imported_modules(text)
        text = OWN_IMPORT.sub(lambda match: f"from {match[1] or '.'} import ", text)
        write_text(folder / source_file(module).name, text)
        written.add(module)
    shutil.copyfile(PACKAGE / "LICENSE", folder / "LICENSE")


def source_file(module: str) -> Path:
    return PACKAGE.parent / f"{module.replace('.', '/')}.py"


def imported_modules(text: str) -> list[str]:
    """The modules of this project that a source text imports."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "krakenlm":
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [node.module] if source_file(node.module).is_file() else inside
    return found


def write_weights(folder: Path, module: nn.Module, end: int, vocabulary: int) -> None:
    """Write model.safetensors, config.json and generation_config.json; `end` is the token that ends a document."""
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    described = {
        "model_type": "krakenlm",
        "architectures": ["KrakenlmForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.KrakenlmConfig",
            "AutoModelForCausalLM": f"{MODELING}.KrakenlmForCausalLM",
        },
        "dtype": "float32",
        **module.config.to_dict(),
        **tokens,
    }
    write_json(folder / "config.json", described)
    padding = list(range(vocabulary, module.config.vocab_size))  # rows of the head that stand for no token
    write_json(folder / "generation_config.json", tokens | ({"suppress_tokens": padding} if padding else {}))


def write_tokenizer(folder: Path, tokenizer: str | Path, block_size: int) -> None:
    """Write tokenizer.json as it is, and what transformers wants to know of it."""
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT),
        "model_max_length": block_size,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", described)
