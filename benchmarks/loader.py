"""Tokens per second that the training windows are served with on one core, and whether they keep a fast trainer fed.

    taskset -c 0 python benchmarks/loader.py

The tokens lie in a file of 400 MB that is mapped as in training. The trainer computes for 1 ms per update (it spins: a
sleep would be longer) and then asks for the next batch.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from krakenlm.training.recipe import Recipe
from krakenlm.training.windows import TrainingWindows

TOKENS, BLOCK_SIZE = 200_000_000, 1024
RECIPE = {
    "steps": 10**6,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "final_learning_rate_share": 0.1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "precision": "32-true",
    "compile": False,
    "fused": False,
    "gpus": 0,
    "threads": 1,
}


def windows(tokens: np.ndarray, sampling: str, batch: int) -> TrainingWindows:
    recipe = Recipe.from_dict(RECIPE | {"batch_sequences": batch, "micro_batch": batch, "sampling": sampling})
    return TrainingWindows(tokens, BLOCK_SIZE, recipe, seed=0, first_step=0, rank=0, pin=False)


def tokens_per_second(loader: TrainingWindows, batch: int, updates: int) -> float:
    begin = time.perf_counter()
    for _ in itertools.islice(loader, updates):
        continue
    return updates * batch * BLOCK_SIZE / (time.perf_counter() - begin)


def waiting(loader: TrainingWindows, updates: int) -> tuple[float, float]:
    """(milliseconds of an update of 1 ms of compute, its share spent waiting for the loader); medians."""
    whole, waited, batches = [], [], iter(loader)
    for _ in range(updates):
        asked = time.perf_counter()
        next(batches)
        got = time.perf_counter()
        while time.perf_counter() - got < 1e-3:
            continue
        whole.append(time.perf_counter() - asked)
        waited.append(got - asked)
    return 1e3 * statistics.median(whole), statistics.median(waited) / statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "train.bin"
        np.random.default_rng(0).integers(0, 50257, TOKENS, dtype=np.uint16).tofile(path)
        tokens = np.memmap(path, "<u2", "r")
        print(f"{'sampling':10}{'batch':>6}{'M tokens/s':>12}{'ms per update':>15}{'waiting':>9}")
        for sampling, batch in itertools.product(("random", "permuted"), (1, 8, 32)):
            updates = max(20, 4000 // batch)
            rates = [tokens_per_second(windows(tokens, sampling, batch), batch, updates) for _ in range(options.rounds)]
            update, share = waiting(windows(tokens, sampling, batch), 500)
            rate = statistics.median(rates) / 1e6
            print(f"{sampling:10}{batch:6}{rate:12.1f}{update:15.3f}{share:9.1%}", flush=True)


if __name__ == "__main__":
    main()
