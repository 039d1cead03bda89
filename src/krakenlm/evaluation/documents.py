"""Losses of predicted validation tokens, document by document, and the scores that follow: no matter of what model."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas

from krakenlm.errors import InputError
from krakenlm.evaluation.statistics import bootstrap_interval
from krakenlm.text.store import TokenStore
from krakenlm.text.tokenizer import load_tokenizer

# Of perplexity.csv.
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


def validation_tokens(store: TokenStore) -> np.ndarray:
    """The validation tokens; raises InputError where there is none to predict."""
    tokens = store.tokens("val")
    if len(tokens) < 2:
        raise InputError(
            f"{store.directory / 'val.bin'}: expected at least 2 tokens, found {len(tokens)}; give more text or a "
            "larger text.validation_share"
        )
    return tokens


def by_document(losses_P: np.ndarray, at_P: np.ndarray, store: TokenStore, tokenizer: Path) -> pandas.DataFrame:
    """One row per validation document: document (its number), nats, tokens (predicted ones), bytes.

    Args:
        losses_P: nats of predicted validation tokens.
        at_P: their places in the validation set, 1 or more; a place may come more than once.
        store: the tokens folder.
        tokenizer: tokenizer.json that made it. bytes are those of the decoded tokens, NaN where these are not the
            text's own, as with tokenizers that normalise, and where not each token but the first is predicted once.
    """
    tokens, split = store.tokens("val"), store.manifest["splits"]["val"]
    end = store.manifest["end_token"]
    # The last document of a file made elsewhere may have no end token.
    ends = np.union1d(np.flatnonzero(tokens == end), len(tokens) - 1)
    document_P = np.searchsorted(ends, at_P)
    documents = pandas.DataFrame(
        {
            "document": np.arange(len(ends)),
            "nats": np.bincount(document_P, losses_P, minlength=len(ends)),
            "tokens": np.bincount(document_P, minlength=len(ends)),
            "bytes": np.nan,
        }
    )
    if np.array_equal(at_P, np.arange(1, len(tokens))):
        texts = load_tokenizer(tokenizer).decode_batch(
            [part[part != end].tolist() for part in np.split(tokens, ends[:-1] + 1)], skip_special_tokens=False
        )
        size_U = np.array([len(text.encode("utf-8")) for text in texts], dtype=np.float64)
        if size_U.sum() == split["bytes"]:
            documents["bytes"] = size_U
    return documents


def scores(documents: pandas.DataFrame, manifest: Mapping) -> dict:
    """The columns that follow from each document's nats, tokens and bytes (`by_document`), of the whole set."""
    split, found = manifest["splits"]["val"], loss_scores(documents)
    # The floor is the whole documents' information; it is spread over the tokens that are predicted here.
    floor = None if split["nats"] is None else split["nats"] / found["tokens"]
    bits_interval = (None, None)
    if documents["bytes"].notna().all():
        bits_interval = bootstrap_interval(documents["nats"].to_numpy() / math.log(2), documents["bytes"].to_numpy())
    return found | {
        "bits_per_byte": math.fsum(documents["nats"]) / math.log(2) / split["bytes"],
        "floor_loss": floor,
        "floor_perplexity": None if floor is None else exponential(floor),
        "bits_per_byte_ci_low": bits_interval[0],
        "bits_per_byte_ci_high": bits_interval[1],
    }


def loss_scores(documents: pandas.DataFrame) -> dict:
    """The columns that need no more than each document's nats and tokens."""
    documents = documents[documents["tokens"] > 0]
    nats, predicted = math.fsum(documents["nats"]), int(documents["tokens"].sum())
    low, high = bootstrap_interval(documents["nats"].to_numpy(), documents["tokens"].to_numpy())
    return {
        "loss": nats / predicted,
        "perplexity": exponential(nats / predicted),
        "tokens": predicted,
        "documents": len(documents),
        "ci_low": None if low is None else exponential(low),
        "ci_high": None if high is None else exponential(high),
    }


def exponential(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float (a model may be that sure and that wrong)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
