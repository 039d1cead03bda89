"""Each model's loss against another's, on the same documents and seeds.

    snakemake results/perplexity.csv --configfile benchmarks/wikitext2.yaml --config text='{files: [my.txt]}'
    python benchmarks/paired_losses.py

Prints a row per model: the mean over seeds of its loss less the other's in nats a token, with a paired 95% interval
over documents and seeds (krakenlm.evaluation.statistics.paired_difference), that as a ratio of perplexities, and the
difference with each seed. Models that are scored already need no more than this; those that an earlier version
scored, a second `snakemake results/perplexity.csv` scores again.
"""

import argparse
import math
import sys
from pathlib import Path

import pandas

from krakenlm.errors import InputError
from krakenlm.evaluation.statistics import paired_difference
from krakenlm.report.tables import read_parquet


def compare(losses: pandas.DataFrame, model: str, against: str) -> str:
    """One row of the table, over the seeds that both models have."""
    nats = {name: part.pivot(index="seed", columns="document", values="nats") for name, part in losses.groupby("model")}
    seeds = nats[model].index.intersection(nats[against].index)
    if seeds.empty:
        raise InputError(f"{model}: expected a seed that {against} has too, found none; train one")
    first_SU, second_SU = (nats[name].loc[seeds].to_numpy() for name in (model, against))
    size_U = losses[(losses["model"] == model) & (losses["seed"] == seeds[0])].sort_values("document")["tokens"]
    found = paired_difference(first_SU, second_SU, size_U.to_numpy())
    low, high = found.interval()
    total = size_U.sum()
    each = ", ".join(f"{value:+.4f}" for value in (first_SU - second_SU).sum(axis=1) / total)
    return (
        f"| {model} | {first_SU.sum(axis=1).mean() / total:.4f} | {found.mean:+.4f} | {low:+.4f} to {high:+.4f} | "
        f"{math.exp(found.mean):.3f} ({math.exp(low):.3f} to {math.exp(high):.3f}) | {each} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Paired differences of losses, over documents and seeds.")
    parser.add_argument("losses", nargs="?", type=Path, default=Path("results/perplexity.parquet"))
    parser.add_argument("--against", default="standard", help="the model that the others are compared with")
    arguments = parser.parse_args()
    table = read_parquet(arguments.losses).to_pandas()
    for (protocol, data), losses in table.groupby(["protocol", "data"], sort=False):
        models = losses["model"].unique().tolist()
        if arguments.against not in models:
            raise InputError(f"--against: expected one of {', '.join(models)}, found {arguments.against!r}; choose one")
        seeds, documents = losses["seed"].nunique(), losses["document"].nunique()
        print(f"{data}; {protocol}; {documents} documents; {seeds} seeds\n")
        print(f"| model | loss | less {arguments.against}'s | 95% interval | perplexity over its | with each seed |")
        print("|---|---|---|---|---|---|")
        for model in models:
            if model != arguments.against:
                print(compare(losses, model, arguments.against))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
