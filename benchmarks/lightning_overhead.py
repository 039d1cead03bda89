"""Training tokens per second through the whole stage, against a bare PyTorch loop over the same model and batch.

    python benchmarks/lightning_overhead.py                  # on a CPU, one thread, float32
    python benchmarks/lightning_overhead.py --device cuda    # on a GPU: the 124m models, bf16, compiled

The stage is `krakenlm.training.run.train` as `krakenlm train` calls it: windows read from the token file, Lightning, an
offline W&B run with its own process, a reading of the numbers every ten updates, a checkpoint every fifty, one
validation window and the best model, all within the time. The bare loop has its one batch in memory and does nothing
but forward, backward, clipping and AdamW. Both take turns, update by update, so that whatever else the machine does
meets both. The first updates, which compile and warm up, are not timed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from krakenlm import models
from krakenlm.machine import device as device_in_words
from krakenlm.machine import keep_freed_memory
from krakenlm.text import corpus
from krakenlm.text.store import TokenStore
from krakenlm.text.tokenizer import train_tokenizer
from krakenlm.text.tokenizing import tokenize
from krakenlm.tracking.run import start_run
from krakenlm.training import run
from krakenlm.training.module import adamw, training_loss
from krakenlm.training.recipe import Recipe
from krakenlm.training.record import Record
from krakenlm.training.windows import gather, starts

STEPS, UNTIMED = 204, 5
TEXT = {"source": "embedded", "words": 60000, "seed": 0, "validation_share": 0.05, "vocabulary": 1024}
MODELS = {
    "cpu": {
        "standard, width 128": {"architecture": "standard", "n_layer": 4, "n_head": 4, "width": 128},
        "kraken 4-way, width 80": {"architecture": "kraken", "degree": 4, "n_layer": 4, "n_head": 8, "width": 80},
    },
    "cuda": {
        "gpt2-124m": {"architecture": "standard", "n_layer": 12, "n_head": 12, "width": 768},
        "kraken-125m-4way": {"architecture": "kraken", "degree": 4, "n_layer": 12, "n_head": 12, "width": 504},
    },
}
BLOCK_SIZE = {"cpu": 256, "cuda": 1024}
RECIPE = {
    "steps": STEPS,
    "learning_rate": 2.5e-4,
    "warmup_steps": 10,
    "final_learning_rate_share": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "fused": True,
    "threads": 1,
    "log_every_steps": 10,
    "checkpoint_every_steps": 50,
    "validate_every_steps": STEPS + 1,  # the first update and the last one validate all the same
    "validation_windows": 1,
}
ON = {
    "cpu": {"batch_sequences": 4, "micro_batch": 4, "precision": "32-true", "compile": False, "gpus": 0},
    "cuda": {"batch_sequences": 16, "micro_batch": 16, "precision": "bf16-mixed", "compile": True, "gpus": 1},
}


class Turns(Record):
    """A Record that makes one step of the bare loop before each update of the stage, and takes the time of both.

    The stage's time runs from there to the same place one update later: forward to optimizer, what is logged and saved,
    and the next windows.
    """

    bare: "BareLoop"
    seconds: dict[str, list[float]]

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.end_of_update(module.device)
        before = time.perf_counter()
        self.bare.step()
        wait(module.device)
        self.resumed = time.perf_counter()
        self.seconds["bare"].append(self.resumed - before)

    def on_train_end(self, trainer, module) -> None:
        self.end_of_update(module.device)
        super().on_train_end(trainer, module)

    def end_of_update(self, device: torch.device) -> None:
        wait(device)
        if self.seconds["bare"]:
            self.seconds["stage"].append(time.perf_counter() - self.resumed)


class BareLoop:
    """Forward, backward, clipping and AdamW on one batch that stays where it is."""

    def __init__(self, text: Path, sizes: dict, recipe: dict) -> None:
        self.recipe, self.device = Recipe.from_dict(recipe), torch.device("cuda" if recipe["gpus"] else "cpu")
        store = TokenStore(text / "tokens")
        torch.manual_seed(0)
        self.network = models.build(sizes | {"vocab_size": store.manifest["vocab_size"]}).to(self.device)
        self.optimizer, self.loss = adamw(self.network, self.recipe), training_loss(self.recipe)
        starts_B = starts(0, 0, self.recipe.batch_sequences, len(store.tokens("train")) - sizes["block_size"])
        self.batch_BW = gather(store.tokens("train"), starts_B, sizes["block_size"]).to(self.device)

    def step(self) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # a promise of the stage's, with its own price
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16-mixed"):
            loss = self.loss(self.network, self.batch_BW)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.use_deterministic_algorithms(deterministic)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(text: Path, sizes: dict, recipe: dict) -> dict[str, np.ndarray]:
    """{stage, bare: seconds of each timed update}."""
    Turns.bare, Turns.seconds = BareLoop(text, sizes, recipe), {"bare": [], "stage": []}
    run.Record = Turns
    with (
        tempfile.TemporaryDirectory() as folder,
        start_run("train", name="", group="benchmark", parameters={}, directory=folder, mode="offline") as wandb,
    ):
        out, logger = Path(folder) / "out", wandb.lightning_logger()
        run.train(text / "tokens", text / "tokenizer.json", sizes, recipe, 0, out, logger)
    return {kind: np.array(seconds[UNTIMED:]) for kind, seconds in Turns.seconds.items()}


def interval(taken: dict[str, np.ndarray]) -> tuple[float, float]:
    """95% interval of the ratio of the two sums, from updates drawn with replacement in blocks between checkpoints."""
    updates, block = len(taken["bare"]), RECIPE["checkpoint_every_steps"]
    firsts = np.random.default_rng(0).integers(0, updates, (2000, -(-updates // block)))
    drawn = (firsts[:, :, None] + np.arange(block)).reshape(len(firsts), -1)[:, :updates] % updates
    low, high = np.quantile(taken["bare"][drawn].sum(1) / taken["stage"][drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def write_text(folder: Path) -> Path:
    corpus.write(folder / "corpus", TEXT)
    train_tokenizer(folder / "corpus", TEXT["vocabulary"], folder / "tokenizer.json")
    tokenize(folder / "corpus", folder / "tokenizer.json", folder / "tokens")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    keep_freed_memory()
    recipe = RECIPE | ON[device]
    tokens = recipe["batch_sequences"] * BLOCK_SIZE[device]
    print(f"{device_in_words()}; {STEPS + 1 - UNTIMED} updates of {tokens:,} tokens each\n")
    print("| model | bare step, ms | bare, tokens/s | whole stage, tokens/s | stage / bare (95% interval) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(Path(folder))
        for name, sizes in MODELS[device].items():
            taken = measure(text, sizes | {"block_size": BLOCK_SIZE[device]}, recipe)
            mean = {kind: float(seconds.mean()) for kind, seconds in taken.items()}
            low, high = interval(taken)
            cells = [name, f"{1e3 * mean['bare']:.1f}", *(f"{tokens / mean[kind]:,.0f}" for kind in ("bare", "stage"))]
            ratio = mean["bare"] / mean["stage"]
            print(f"| {' | '.join(cells)} | {ratio:.3f} ({low:.3f} to {high:.3f}) |", flush=True)


if __name__ == "__main__":
    main()
