"""Products with weights as they are, and with the same packed as a CPU's engine has them.

    python benchmarks/packed_products.py

One core, float32. Every call reads another weight, so that it comes from memory; the two take turns. Of a Kraken's
splits on one rank: the batched product of unpacked weights, and packed ones one after another, joined by a copy.
"""

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from krakenlm.machine import keep_freed_memory
from krakenlm.models.products import pack_weight, packed_product

WEIGHTS = [(64, 64), (128, 128), (256, 256), (384, 384), (768, 256), (512, 512), (1024, 1536), (896, 2688), (512, 1024),
           (896, 896), (1024, 2048), (896, 1792)]  # fmt: skip
SPLITS = [(2, 896, 1792), (4, 640, 1280), (2, 448, 448)]
ROWS = [1, 16, 64, 128, 320, 512]
UNCACHED_BYTES, MOST_WEIGHTS, CALLS = 64 * 2**20, 600, 60


def microseconds(functions: list[Callable[[], object]]) -> list[float]:
    """The median of each, in turns."""
    taken: list[list[float]] = [[] for _ in functions]
    for call in range(CALLS + 3):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if call >= 3:
                times.append(1e6 * (time.perf_counter() - start))
    return [float(np.median(times)) for times in taken]


def weights(splits: int, width_in: int, width_out: int) -> tuple[itertools.cycle, itertools.cycle]:
    """Weights (N, E, D) without end, and packed ones, of each split one."""
    count = 2 + min(MOST_WEIGHTS, UNCACHED_BYTES // (4 * splits * width_in * width_out))
    drawn = [torch.randn(splits, width_out, width_in) for _ in range(count)]
    return itertools.cycle(drawn), itertools.cycle([[pack_weight(each) for each in one] for one in drawn])


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"| weights, from and to | {' | '.join(f'{rows} rows' for rows in ROWS)} |\n|{'---|' * (1 + len(ROWS))}")
    for splits, width_in, width_out in [*((1, *each) for each in WEIGHTS), *SPLITS]:
        plain, packed = weights(splits, width_in, width_out)
        cells = []
        for rows in ROWS:
            x_N1RD = torch.randn(splits, 1, rows, width_in)

            def unpacked(x=x_N1RD, plain=plain):
                weight_NED = next(plain)
                return F.linear(x, weight_NED[0]) if len(x) == 1 else torch.bmm(x[:, 0], weight_NED.mT)

            pair = microseconds([unpacked, lambda x=x_N1RD, packed=packed: packed_product(x, next(packed), None)])
            rate = [2e-3 * splits * rows * width_in * width_out / each for each in pair]
            cells.append(f"{pair[0]:.0f}, {pair[1]:.0f} us" if rows < 64 else f"{rate[0]:.0f}, {rate[1]:.0f}")
        name = f"{splits} splits, " if splits > 1 else ""
        print(f"| {name}{width_in} to {width_out} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
