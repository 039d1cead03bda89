"""A model's loss on the validation set, by one protocol or several."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn
from torch.nn import functional

from krakenlm.errors import InputError
from krakenlm.evaluation.documents import COLUMNS, by_document, loss_scores, scores, validation_tokens
from krakenlm.evaluation.ranks import on_ranks
from krakenlm.evaluation.windows import Windows, at_random, batches, in_order
from krakenlm.files import read_json, write_table, writing
from krakenlm.models import load_model
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.progress import Progress
from krakenlm.text.store import TokenStore
from krakenlm.text.tokenizer import load_tokenizer, tokenizer_checksum

PROTOCOL = "whole validation set, non-overlapping windows"
AUTHORS = "authors"
DOCUMENT_COLUMNS = ("model", "protocol", "data", "document", "nats", "tokens", "bytes", "seed", "scale", "run")
# Logits of a batch: float32, 32 MB on a CPU (near its caches) and 800 MB on a GPU (enough to keep it busy).
LOGITS_PER_BATCH = {"cpu": 8_000_000, "cuda": 200_000_000}


def evaluate(
    model: Path,
    tokens: Path,
    out: Path,
    name: str,
    seed: int,
    scale: str,
    run: str,
    threads: int,
    stride: int | None = None,
    authors_windows: int = 0,
    ranks: int = 1,
) -> list[dict]:
    """Score a model on validation tokens; write the rows as CSV and, beside it, each document's losses as parquet.

    There is a row for each protocol:

    - The whole validation set, in windows that follow one another: window k predicts tokens 1 + k * block_size to
      (k + 1) * block_size, each from the tokens before it that lie in the window's inputs k * block_size, ... So every
      token but the very first is predicted exactly once (the last window is shorter), with a context of 1 to block_size
      tokens.
    - With `stride` the same tokens again, in windows that begin so many tokens after one another (windows.in_order):
      more context for each, and block_size / stride times the work.
    - With `authors_windows` the authors' protocol: so many windows of block_size tokens from random places, the same
      ones for each model, under bfloat16 autocast.

    Documents follow one another as in training, with the end token between them; end tokens are predicted and counted
    like any other, and belong to the document they end.

    `loss` is the mean over predicted tokens in nats, summed in float64; `perplexity` its exponential, with the
    bootstrap's 95% interval over documents, `ci_low` to `ci_high`; `bits_per_byte` the sum in bits over the UTF-8
    bytes of the validation text, with its own; `floor_loss` and `floor_perplexity` what the text's own generator
    would reach (nats of the documents over the same number of tokens), empty where nobody knows. Random windows cut
    through documents: what they have in bytes, and the floor, is empty.

    Args:
        model: model folder (config.json, model.safetensors, tokenizer.json, metrics.json).
        tokens: tokens folder (text.store.TokenStore).
        out: the CSV to write, with the columns of `documents.COLUMNS`; beside it, with the suffix .parquet, one
            row per protocol and document with the columns of `DOCUMENT_COLUMNS`.
        name, seed, scale, run: go into the rows.
        threads: threads that torch may use, of each rank; equal numbers give equal bits.
        ranks: processes, each with a GPU where there are as many, that share the windows; the bits are those of one.

    Raises:
        InputError: the model's tokenizer is not the tokens' or not its own, the stride is longer than a window, or a
            file is missing or damaged.
    """
    arguments = {"model": str(model), "tokens": str(tokens), "out": str(out), "stride": stride}
    arguments |= {
        "authors_windows": authors_windows,
        "names": {"model": name, "seed": seed, "scale": scale, "run": run},
    }
    return on_ranks("krakenlm.evaluation.perplexity:evaluate_on_rank", evaluate_on_rank, arguments, ranks, threads)


def evaluate_on_rank(
    comm: Collectives,
    device: str,
    model: str,
    tokens: str,
    out: str,
    stride: int | None,
    authors_windows: int,
    names: Mapping,
) -> list[dict]:
    """`evaluate` on one of the ranks that share the windows; the first one writes, and returns the rows."""
    store, tokenizer, module = TokenStore(tokens), Path(model) / "tokenizer.json", load_model(model)
    check_vocabulary(Path(model), module.config.vocab_size, store)
    chosen = protocols(len(validation_tokens(store)), module.config.block_size, stride, authors_windows)
    metrics = read_json(Path(model) / "metrics.json")
    described = {
        "architecture": module.config.architecture,
        "degree": getattr(module.config, "degree", None),
        "parameters": metrics.get("parameters"),
        "tokens_seen": metrics.get("tokens_seen"),
        "data": store.manifest["data"],
        **names,
    }
    module, rows, tables = module.to(device), [], []
    for protocol, parts in chosen.items():
        losses_P = token_losses(module, store.tokens("val"), parts, torch.device(device), comm, protocol == AUTHORS)
        if comm.rank:
            continue
        documents = by_document(losses_P, np.concatenate([part.at_P for part in parts]), store, tokenizer)
        found = scores(documents, store.manifest) if protocol != AUTHORS else loss_scores(documents)
        rows.append({**described, **found, "protocol": protocol})
        documents = documents[documents["tokens"] > 0]
        tables.append(documents.assign(protocol=protocol, data=described["data"], **names)[list(DOCUMENT_COLUMNS)])
    if comm.rank:
        return []
    with writing(Path(out).with_suffix(".parquet")) as temporary:
        pandas.concat(tables).to_parquet(temporary, index=False)
    return write_table(Path(out), rows, COLUMNS)


def protocols(tokens: int, block_size: int, stride: int | None, authors_windows: int) -> dict[str, list[Windows]]:
    """Protocol -> the windows that it asks of a model.

    Raises:
        InputError: the stride is longer than a window.
    """
    chosen = {PROTOCOL: in_order(tokens, block_size, block_size)}
    if stride is not None:
        if not 0 < stride <= block_size:
            raise InputError(
                f"evaluation.stride: expected 1 to {block_size}, the model's block_size, found {stride}; tokens "
                "between windows would be left out; lower it"
            )
        chosen[f"whole validation set, stride {stride}"] = in_order(tokens, block_size, stride)
    if authors_windows:
        chosen[AUTHORS] = at_random(tokens, block_size, authors_windows)
    return chosen


def check_vocabulary(model: Path, vocab_size: int, store: TokenStore) -> None:
    """Raises InputError where a model has no logits for some tokens, or another tokenizer than made them.

    Tokens that an earlier version made have no checksum of their tokenizer; of those the size alone is known.
    """
    expected = store.manifest["vocabulary"]
    tokenizer = load_tokenizer(Path(model) / "tokenizer.json")
    found = tokenizer.get_vocab_size()
    if found != expected or vocab_size < expected:
        raise InputError(
            f"{model}: expected a tokenizer of {expected} tokens, as {store.directory / 'manifest.json'} says, and a "
            f"vocab_size of no less, found {found} and {vocab_size}; evaluate it on the tokens it was trained for"
        )
    if store.manifest.get("tokenizer", tokenizer_checksum(tokenizer)) != tokenizer_checksum(tokenizer):
        raise InputError(
            f"{model}: expected the tokenizer of {store.directory}, found another of {found} tokens, too; evaluate it "
            "on the tokens it was trained for"
        )


@torch.inference_mode()
def token_losses(
    module: nn.Module,
    tokens: np.ndarray,
    parts: list[Windows],
    device: torch.device,
    comm: Collectives = ALONE,
    bfloat16: bool = False,
) -> np.ndarray:
    """Loss in nats of each token that `parts` predict, float64, in their order; on every rank those of all.

    Each rank computes every world-th batch, and a batch is the same however many ranks there are.
    """
    most_tokens = LOGITS_PER_BATCH[device.type] // module.config.vocab_size
    losses_P, start = torch.zeros(sum(part.at_P.size for part in parts), dtype=torch.float64, device=device), 0
    progress = Progress("perplexity", len(losses_P), "tokens")
    for number, batch in enumerate(batches(parts, most_tokens)):
        end = start + batch.at_P.size
        if number % comm.world == comm.rank:
            inputs_BT, targets_BC = (torch.from_numpy(each).to(device) for each in batch.cut(tokens))
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits_BCV = module(inputs_BT, at=slice(-batch.counted, None)).float()
            losses_P[start:end] = functional.cross_entropy(
                logits_BCV.flatten(0, 1), targets_BC.flatten(), reduction="none"
            )
        progress.add(end - start)
        start = end
    return comm.all_reduce(losses_P).wait().cpu().numpy()
