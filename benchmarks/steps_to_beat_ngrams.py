"""Print after how many steps each trained model's validation loss fell below that of each n-gram model.

    snakemake --configfile benchmarks/real_text.yaml --config text='{files: [wikitext-2/valid.txt]}'
    python benchmarks/steps_to_beat_ngrams.py

Reads results/perplexity.csv and the metrics.json of the models that it names. The configuration has to validate over
all windows (`training.validation_windows` above their number), so that both are losses over the same tokens.
"""

import json
from pathlib import Path

import pandas as pd


def first_below(history: list[dict], loss: float) -> str:
    steps = [point["step"] for point in history if point["loss"] < loss]
    return f"{min(steps):,}" if steps else "never"


def main() -> None:
    table = pd.read_csv("results/perplexity.csv")
    ngrams = table[table.architecture == "n-gram"]
    print(
        "| model | final perplexity |"
        + "".join(f" beats {row.model} ({row.perplexity:.1f}) |" for row in ngrams.itertuples())
    )
    print("|---|---|" + "---|" * len(ngrams))
    for row in table[table.architecture != "n-gram"].itertuples():
        metrics = json.loads(Path("results", row.scale, row.run, "metrics.json").read_text())
        steps = [first_below(metrics["validation"], loss) for loss in ngrams.loss]
        print(f"| {row.model} | {row.perplexity:.1f} | " + " | ".join(steps) + " |")


if __name__ == "__main__":
    main()
