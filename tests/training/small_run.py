"""A training of a second or two that tests start, disturb and compare."""

import json
from pathlib import Path

from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import train_tokenizer
from krakenlm.text.tokenizing import tokenize
from krakenlm.training import run

MODEL = {"architecture": "kraken", "degree": 2, "n_layer": 2, "n_head": 2, "width": 16, "block_size": 16}
RECIPE = {
    "steps": 12,
    "batch_sequences": 4,
    "micro_batch": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "final_learning_rate_share": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "precision": "32-true",
    "compile": False,
    "fused": True,
    "gpus": 0,
    "threads": 1,
    "log_every_steps": 1,
    "checkpoint_every_steps": 4,
    "checkpoint_every_minutes": 15,
    "validate_every_steps": 4,
    "validation_windows": 4,
}


def write_text(folder: Path) -> tuple[Path, Path]:
    """(tokens folder, tokenizer.json) of a few hundred short documents."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for split, numbers in {"train": range(300), "val": range(300, 340)}.items():
        lines = [json.dumps({"text": f"The number {n} comes before the number {n + 1}."}) for n in numbers]
        (corpus / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    found = Found([corpus / "train.jsonl"], held_out=[corpus / "val.jsonl"])
    describe(corpus, found, {"source": "files", "files": ["numbers.txt"]})
    train_tokenizer(corpus, 300, folder / "tokenizer.json")
    tokenize(corpus, folder / "tokenizer.json", folder / "tokens")
    return folder / "tokens", folder / "tokenizer.json"


def train(text: tuple[Path, Path], out: Path, **changes) -> None:
    run.train(*text, MODEL, RECIPE | changes, 0, out)


def untimed(out: Path) -> tuple[dict, bytes]:
    """(metrics.json without what depends on the machine, model.safetensors) of a finished training."""
    metrics = json.loads((out / "metrics.json").read_text())
    metrics.pop("timings")
    metrics.pop("hardware")
    return metrics, (out / "model.safetensors").read_bytes()
