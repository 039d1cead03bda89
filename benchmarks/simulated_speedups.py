"""Simulated speed-ups over standard on the paper's grid (five sizes, contexts 128 and 2048, batch 1), one table.

python benchmarks/simulated_speedups.py            # geometric means by machine, ranks and rule of heads
python benchmarks/simulated_speedups.py --cells    # every cell of a100-40gb
"""

import dataclasses
import itertools
import sys
import time
from statistics import geometric_mean

from krakenlm.latency import hardware, sweep
from krakenlm.latency.simulate import Overlap
from krakenlm.models.sizing import SHAPES

ROWS = ("kraken", "parallel", "ladder", "standard-chunked")
LENGTHS = {"vocab_size": 50304, "block_size": 2048}


def speedups(place, heads, tp):
    """{(size, ranks, context): {architecture: (milliseconds, speed-up)}}"""
    cells = {}
    for size, ranks, context in itertools.product(SHAPES, tp, (128, 2048)):
        models = sweep.models_of(["standard", *ROWS], SHAPES[size], ranks, [], heads, LENGTHS)
        cell = {"tp": ranks, "context": context, "batch": 1, "dtype": "float16"}
        [(_, runs)] = sweep.runs_of(cell, [place], models)
        seconds = {run.model.architecture: run.timeline.seconds for run in runs}
        cells[size, ranks, context] = {name: (1e3 * s, seconds["standard"] / s) for name, s in seconds.items()}
    return cells


def mean_line(label, heads, cells, tp):
    """One line of the table."""
    chosen = [cell for (_, ranks, _), cell in cells.items() if ranks in tp]
    means = [f"{geometric_mean(cell[name][1] for cell in chosen):.3f}" for name in ROWS]
    print(f"| {label} | {heads} | {' and '.join(map(str, tp))} | {' | '.join(means)} |", flush=True)


def main():
    start = time.perf_counter()
    a100 = hardware.load("a100-40gb")
    if "--cells" in sys.argv:
        print("| size | ranks | context | " + " | ".join(("standard, ms", *ROWS)) + " |")
        for (size, ranks, context), cell in speedups(a100, "head_size", (4, 8)).items():
            shown = [f"{cell['standard'][0]:.2f}", *(f"{cell[name][1]:.2f}" for name in ROWS)]
            print(f"| {size} | {ranks} | {context} | " + " | ".join(shown) + " |")
        return
    print("| machine | heads | ranks | " + " | ".join(ROWS) + " |")
    for name, heads in itertools.product(
        ("a100-40gb", "a100-80gb", "h100", "h200", "b200", "l40s"), ("head_size", "head_count")
    ):
        cells = speedups(hardware.load(name), heads, (4, 8))
        for tp in ((4,), (8,), (4, 8)):
            mean_line(name, heads, cells, tp)
    # What the assumptions are worth: how much collectives slow compute, and slower links than measured.
    changes = {f"a100-40gb, overlap {x:g}": {"overlap": Overlap(x, 1)} for x in (1.0, 1.5)}
    slower = dataclasses.replace(a100.inside, bandwidth=a100.inside.bandwidth / 1.5, latency=1.5 * a100.inside.latency)
    changes["a100-40gb, every collective 1.5 times as long"] = {"inside": slower}
    for label, change in changes.items():
        mean_line(label, "head_size", speedups(dataclasses.replace(a100, **change), "head_size", (4, 8)), (4, 8))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
