"""Time to first token of every row over loopback and over a link of 1 Gbit/s, on two ranks.

    python benchmarks/ttft_links.py

Width 1024, eight layers, vocabulary 50304, float32, batch 1, one thread a rank; contexts 128 and 512; random weights.
Rows take turns run by run. The link is measured before its rows (docs/engines.md).
"""

import tempfile
from pathlib import Path

from krakenlm.latency.ttft import measure_ttft

ROWS = ["standard", "standard-chunked", "parallel", "ladder", "kraken"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_ttft(
            size="width-1024",
            tp=2,
            out_csv=Path(folder) / "ttft.csv",
            breakdown_csv=Path(folder) / "ttft_breakdown.csv",
            scale="",
            run="",
            links=["loopback", "1gbit"],
            architectures=ROWS,
            vocab_size=50304,
            contexts=[128, 512],
            batch=1,
            runs=16,
            most_runs=16,
            precision=0.02,
            warmup=2,
            profiled_runs=1,
            dtype="float32",
            threads=1,
            seed=0,
            n_layer=8,
            width=1024,
            n_head=16,
        )
    print("| link | measured, Gbit/s | context | row | TTFT, ms (95% interval) | over standard (95% interval) | runs |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        time = f"{row['ttft_ms_median']:.0f} ({row['ci_low']:.0f} to {row['ci_high']:.0f})"
        ratio = f"{row['speedup_vs_standard']:.2f} ({row['speedup_ci_low']:.2f} to {row['speedup_ci_high']:.2f})"
        print(
            f"| {row['link']} | {row['link_gbit_measured']:.2f} | {row['context']} | {row['architecture']} | {time} | "
            f"{ratio} | {row['runs']} |"
        )


if __name__ == "__main__":
    main()
