"""A model's loss on the whole validation set."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn
from torch.nn import functional

from krakenlm.errors import InputError
from krakenlm.evaluation.statistics import bootstrap_interval
from krakenlm.files import read_json, write_table, writing
from krakenlm.models import load_model
from krakenlm.text.store import TokenStore
from krakenlm.text.tokenizer import load_tokenizer

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
    "documents",
    "ci_low",
    "ci_high",
    "bits_per_byte_ci_low",
    "bits_per_byte_ci_high",
)
DOCUMENT_COLUMNS = ("model", "protocol", "data", "document", "nats", "tokens", "bytes", "seed", "scale", "run")
# Logits of a batch: float32, 32 MB on a CPU (near its caches) and 800 MB on a GPU (enough to keep it busy).
LOGITS_PER_BATCH = {"cpu": 8_000_000, "cuda": 200_000_000}


def evaluate(
    model: Path, tokens: Path, out: Path, name: str, seed: int, scale: str, run: str, threads: int
) -> list[dict]:
    """Score a model on the whole validation set; write the row as CSV and, beside it, each document's loss as parquet.

    The validation tokens are cut into windows that follow one another: window k predicts tokens
    1 + k * block_size to (k + 1) * block_size, each from the tokens before it that lie in the window's inputs
    k * block_size, ... So every token but the very first is predicted exactly once (the last window is shorter),
    with a context of 1 to block_size tokens. Documents follow one another as in training, with the end token
    between them; end tokens are predicted and counted like any other, and belong to the document they end.

    `loss` is the mean over predicted tokens in nats, summed in float64; `perplexity` its exponential, with the
    bootstrap's 95% interval over documents, `ci_low` to `ci_high`; `bits_per_byte` the sum in bits over the UTF-8
    bytes of the validation text, with its own; `floor_loss` and `floor_perplexity` what the text's own generator
    would reach (nats of the documents over the same number of tokens), empty where nobody knows.

    Args:
        model: model folder (config.json, model.safetensors, tokenizer.json, metrics.json).
        tokens: tokens folder (text.store.TokenStore).
        out: the CSV to write, one row with the columns of `COLUMNS`; beside it, with the suffix .parquet, one row per
            document with the columns of `DOCUMENT_COLUMNS`.
        name, seed, scale, run: go into the rows.
        threads: threads that torch may use; equal numbers give equal bits.

    Raises:
        InputError: the model's tokenizer is not the tokens' or not its own, or a file is missing or damaged.
    """
    torch.set_num_threads(threads)
    store = TokenStore(tokens)
    module = load_model(model)
    tokenizer = Path(model) / "tokenizer.json"
    check_vocabulary(model, module.config.vocab_size, store)
    metrics = read_json(Path(model) / "metrics.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    losses_P = token_losses(module.to(device), validation_tokens(store), device)
    documents = by_document(losses_P, store, tokenizer)
    common = {"model": name, "protocol": PROTOCOL, "data": store.manifest["data"]}
    row = {
        "architecture": module.config.architecture,
        "degree": getattr(module.config, "degree", None),
        "parameters": metrics.get("parameters"),
        "tokens_seen": metrics.get("tokens_seen"),
        **scores(documents, store.manifest),
    }
    origin = {"seed": seed, "scale": scale, "run": run}
    with writing(Path(out).with_suffix(".parquet")) as temporary:
        documents.assign(**common, **origin)[list(DOCUMENT_COLUMNS)].to_parquet(temporary, index=False)
    return write_table(out, [common | row | origin], COLUMNS)


def check_vocabulary(model: Path, vocab_size: int, store: TokenStore) -> None:
    """Raises InputError where a model has no logits for some tokens, or a tokenizer of another size."""
    expected = store.manifest["vocabulary"]
    found = load_tokenizer(Path(model) / "tokenizer.json").get_vocab_size()
    if found != expected or vocab_size < expected:
        raise InputError(
            f"{model}: expected a tokenizer of {expected} tokens, as {store.directory / 'manifest.json'} says, and a "
            f"vocab_size of no less, found {found} and {vocab_size}; evaluate it on the tokens it was trained for"
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


def by_document(losses_P: np.ndarray, store: TokenStore, tokenizer: Path) -> pandas.DataFrame:
    """One row per validation document: document (its number), nats, tokens (predicted ones), bytes.

    Args:
        losses_P: nats of each validation token but the first.
        store: the tokens folder.
        tokenizer: tokenizer.json that made it. bytes are those of the decoded tokens, NaN where these are not the
            text's own, as with tokenizers that normalise.
    """
    tokens, split = store.tokens("val"), store.manifest["splits"]["val"]
    document_P = np.cumsum(tokens[:-1] == store.manifest["end_token"])
    ends = np.flatnonzero(tokens == store.manifest["end_token"])
    texts = load_tokenizer(tokenizer).decode_batch(
        [part.tolist()[:-1] for part in np.split(tokens, ends[:-1] + 1)], skip_special_tokens=False
    )
    size_U = np.array([len(text.encode("utf-8")) for text in texts], dtype=np.float64)
    return pandas.DataFrame(
        {
            "document": np.arange(len(ends)),
            "nats": np.bincount(document_P, losses_P, minlength=len(ends)),
            "tokens": np.bincount(document_P, minlength=len(ends)),
            "bytes": size_U if size_U.sum() == split["bytes"] else np.nan,
        }
    )


def scores(documents: pandas.DataFrame, manifest: Mapping) -> dict:
    """The columns that follow from each document's nats, tokens and bytes (`by_document`)."""
    split = manifest["splits"]["val"]
    nats, predicted = math.fsum(documents["nats"]), int(documents["tokens"].sum())
    # The floor is the whole documents' information; it is spread over the tokens that are predicted here.
    floor = None if split["nats"] is None else split["nats"] / predicted
    loss_interval = bootstrap_interval(documents["nats"].to_numpy(), documents["tokens"].to_numpy())
    bits_interval = (None, None)
    if documents["bytes"].notna().all():
        bits_interval = bootstrap_interval(documents["nats"].to_numpy() / math.log(2), documents["bytes"].to_numpy())
    return {
        "loss": nats / predicted,
        "perplexity": exponential(nats / predicted),
        "bits_per_byte": nats / math.log(2) / split["bytes"],
        "tokens": predicted,
        "floor_loss": floor,
        "floor_perplexity": None if floor is None else exponential(floor),
        "documents": len(documents),
        "ci_low": None if loss_interval[0] is None else exponential(loss_interval[0]),
        "ci_high": None if loss_interval[1] is None else exponential(loss_interval[1]),
        "bits_per_byte_ci_low": bits_interval[0],
        "bits_per_byte_ci_high": bits_interval[1],
    }


def exponential(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float (a model may be that sure and that wrong)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@torch.inference_mode()
def token_losses(module: nn.Module, tokens: np.ndarray, device: torch.device) -> np.ndarray:
    """Loss in nats of each of `tokens` but the first, float64, in windows that do not overlap."""
    losses = []
    config = module.config
    windows = max(1, LOGITS_PER_BATCH[device.type] // (config.block_size * config.vocab_size))
    for inputs_BT, targets_BT in batches(tokens, config.block_size, windows):
        logits_BTV = module(inputs_BT.to(device)).float()
        loss_L = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.to(device).flatten(), reduction="none")
        losses.append(loss_L.cpu().double().numpy())
    return np.concatenate(losses)


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
