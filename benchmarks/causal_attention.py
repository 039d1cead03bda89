"""Causal attention on one core: PyTorch's kernel as it is, and called block of queries by block of queries.

    python benchmarks/causal_attention.py

Prints the median of interleaved runs, their ratio with its spread, and the floor: the FLOPs that a causal mask leaves,
at the rate of a large matrix product on the same core.
"""

import statistics
import time

import torch
from torch.nn import functional as F

from krakenlm.models.blocks import causal_attention

RUNS = 30


def milliseconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    a, b = torch.randn(2, 1024, 1024)
    peak = 2 * 1024**3 / min(milliseconds(torch.mm, a, b) for _ in range(10)) * 1e3
    print(f"one core, float32, head size 64; matrix product {peak / 1e9:.0f} GFLOP/s")
    print("| heads | tokens | floor ms | whole ms | blocks ms | ratio (5th to 95th percentile) |")
    print("|---|---|---|---|---|---|")
    for heads in (8, 14):
        for tokens in (64, 128, 256, 512, 1024):
            # Strided as a model has them: q, k and v side by side in one product's result.
            qkv = torch.randn(1, tokens, 3 * heads * 64)
            q, k, v = (part.unflatten(-1, (heads, 64)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            pairs = [
                (
                    milliseconds(F.scaled_dot_product_attention, q, k, v, None, 0.0, True),
                    milliseconds(causal_attention, q, k, v),
                )
                for _ in range(RUNS)
            ]
            whole, blocks = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = sorted(x / y for x, y in pairs)
            floor = 2 * 2 * heads * 64 * tokens * (tokens + 1) / 2 / peak * 1e3
            print(
                f"| {heads} | {tokens} | {floor:.2f} | {whole:.2f} | {blocks:.2f} | {statistics.median(ratios):.2f} "
                f"({ratios[1]:.2f} to {ratios[-2]:.2f}) |"
            )


if __name__ == "__main__":
    main()
