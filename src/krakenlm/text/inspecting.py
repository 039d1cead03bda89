"""What a user looks at before a month of training: the figures of a tokens folder, and samples of it as text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from krakenlm.errors import InputError
from krakenlm.text.store import SPLITS, TokenStore
from krakenlm.text.tokenizer import load_tokenizer


def statistics(tokens_dir: str | Path) -> list[dict]:
    """One row per split: documents, tokens, bytes_per_token, and of the documents' lengths in tokens (the end token
    included) the mean, quantiles, shortest and longest."""
    manifest = TokenStore(tokens_dir).manifest
    rows = []
    for split in SPLITS:
        entry = manifest["splits"][split]
        lengths = entry["lengths"]
        rows.append(
            {
                "split": split,
                "documents": entry["documents"],
                "tokens": entry["tokens"],
                "bytes_per_token": round(entry["bytes"] / entry["tokens"], 3),
                "mean_length": round(lengths["mean"], 1),
                **{f"{float(share):.0%}": length for share, length in lengths["quantiles"].items()},
                "shortest": lengths["shortest"],
                "longest": lengths["longest"],
            }
        )
    return rows


def samples(
    tokens_dir: str | Path, tokenizer_json: str | Path, split: str, count: int, length: int, seed: int
) -> Iterator[tuple[int, str]]:
    """(first token, text) of windows drawn from a split; the end token is spelled out.

    Args:
        tokens_dir: tokens folder.
        tokenizer_json: the tokenizer that made it.
        split: "train" or "val".
        count: how many windows; length: tokens of each; seed: of their places.

    Raises:
        InputError: the folder or tokenizer is missing or damaged, or they do not belong together.
    """
    store, tokenizer = TokenStore(tokens_dir), load_tokenizer(tokenizer_json)
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}; choose one")
    if tokenizer.get_vocab_size() != store.manifest["vocabulary"]:
        raise InputError(
            f"{tokenizer_json}: expected the tokenizer that made {tokens_dir}, of {store.manifest['vocabulary']} "
            f"tokens, found one of {tokenizer.get_vocab_size()}; name the right one with --tokenizer"
        )
    ids_P = store.tokens(split)
    choices = max(1, len(ids_P) - length + 1)
    for start in np.random.default_rng(seed).integers(0, choices, count).tolist():
        yield start, tokenizer.decode(ids_P[start : start + length].tolist(), skip_special_tokens=False)
