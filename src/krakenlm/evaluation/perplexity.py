"""A model's loss on the whole validation set."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_table
from krakenlm.models import load_model
from krakenlm.text.store import TokenStore

PROTOCOL = "whole validation set, non-overlapping windows"
COLUMNS = (
    "model",
    "architecture",
    "degree",
    "parameters",
    "tokens_seen",
    "data",
    "protocol",
    "loss",
    "perplexity",
    "bits_per_byte",
    "seed",
    "scale",
    "run",
    "tokens",
    "floor_loss",
    "floor_perplexity",
)
# Logits of a batch: float32, 32 MB on a CPU (near its caches) and 800 MB on a GPU (enough to keep it busy).
LOGITS_PER_BATCH = {"cpu": 8_000_000, "cuda": 200_000_000}


def evaluate(
    model: Path, tokens: Path, out: Path, name: str, seed: int, scale: str, run: str, threads: int
) -> list[dict]:
    """Score a model on the whole validation set and write the row as CSV.

    The validation tokens are cut into windows that follow one another: window k predicts tokens
    1 + k * block_size to (k + 1) * block_size, each from the tokens before it that lie in the window's inputs
    k * block_size, ... So every token but the very first is predicted exactly once (the last window is shorter),
    with a context of 1 to block_size tokens. Documents follow one another as in training, with the end token
    between them; end tokens are predicted and counted like any other.

    `loss` is the mean over predicted tokens in nats, summed in float64; `perplexity` its exponential;
    `bits_per_byte` the sum in bits over the UTF-8 bytes of the validation text; `floor_loss` and
    `floor_perplexity` what the text's own generator would reach (nats of the documents over the same number of
    tokens), empty where nobody knows.

    Args:
        model: model folder (config.json, model.safetensors, metrics.json).
        tokens: tokens folder (text.store.TokenStore).
        out: the CSV to write, one row with the columns of `COLUMNS`.
        name, seed, scale, run: go into the row.
        threads: threads that torch may use; equal numbers give equal bits.

    Raises:
        InputError: the model's vocabulary is not the tokens', or a file is missing or damaged.
    """
    torch.set_num_threads(threads)
    store = TokenStore(tokens)
    module = load_model(model)
    check_vocabulary(model, module.config.vocab_size, tokens, store.manifest["vocab_size"])
    metrics = read_json(Path(model) / "metrics.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    validation = validation_tokens(store)
    nats = loss_sum(module.to(device), validation, device)
    row = {
        "model": name,
        "architecture": module.config.architecture,
        "degree": getattr(module.config, "degree", None),
        "parameters": metrics.get("parameters"),
        "tokens_seen": metrics.get("tokens_seen"),
        **scores(nats, len(validation) - 1, store.manifest),
        "seed": seed,
        "scale": scale,
        "run": run,
    }
    return write_table(out, [row], COLUMNS)


def check_vocabulary(model: Path, found: int, tokens: Path, expected: int) -> None:
    """Raises InputError where a model and tokens have vocabularies of different sizes."""
    if found != expected:
        raise InputError(
            f"{model}: expected a model of vocab_size {expected}, as {Path(tokens) / 'manifest.json'} says, found "
            f"{found}; evaluate it on the tokens it was trained for"
        )


def validation_tokens(store: TokenStore) -> np.ndarray:
    """The validation tokens; raises InputError where there is none to predict."""
    tokens = store.tokens("val")
    if len(tokens) < 2:
        raise InputError(
            f"{store.directory / 'val.bin'}: expected at least 2 tokens, found {len(tokens)}; give more text or a "
            "larger text.validation_share"
        )
    return tokens


def scores(nats: float, predicted: int, manifest: Mapping) -> dict:
    """The columns that follow from the sum of losses `nats` over `predicted` tokens of the validation set."""
    split = manifest["splits"]["val"]
    # The floor is the whole documents' information; it is spread over the tokens that are predicted here.
    floor = None if split["nats"] is None else split["nats"] / predicted
    return {
        "data": manifest["data"],
        "protocol": PROTOCOL,
        "loss": nats / predicted,
        "perplexity": exponential(nats / predicted),
        "bits_per_byte": nats / math.log(2) / split["bytes"],
        "tokens": predicted,
        "floor_loss": floor,
        "floor_perplexity": None if floor is None else exponential(floor),
    }


def exponential(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float (a model may be that sure and that wrong)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@torch.inference_mode()
def loss_sum(module: nn.Module, tokens: np.ndarray, device: torch.device) -> float:
    """Sum of the losses in nats over all `tokens` but the first, in windows that do not overlap."""
    total = torch.zeros((), dtype=torch.float64)
    config = module.config
    windows = max(1, LOGITS_PER_BATCH[device.type] // (config.block_size * config.vocab_size))
    for inputs_BT, targets_BT in batches(tokens, config.block_size, windows):
        logits_BTV = module(inputs_BT.to(device)).float()
        loss_L = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.to(device).flatten(), reduction="none")
        total += loss_L.cpu().double().sum()
    return total.item()


def batches(tokens: np.ndarray, length: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs_BT, targets_BT), int64: `count` windows of `length` at a time, the shorter last one alone."""
    predicted = len(tokens) - 1
    windows = predicted // length
    for first in range(0, windows, count):
        yield cut(tokens, first * length, min(count, windows - first), length)
    if predicted % length:
        yield cut(tokens, windows * length, 1, predicted % length)


def cut(tokens: np.ndarray, start: int, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    piece = torch.from_numpy(np.array(tokens[start : start + count * length + 1], dtype=np.int64))
    return piece[:-1].view(count, length), piece[1:].view(count, length)
