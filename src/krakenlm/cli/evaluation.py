"""Models become scores: perplexity, SuperGLUE, the n-grams beside them, and what differs between models."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import ModelFolder, Out, Scale, Seed, Threads, folder_under_results, named_values, writing_stage
from krakenlm.machine import count_gpus

commands = typer.Typer()

Ranks = Annotated[int, typer.Option(help="Processes that share the work, each with a GPU where there are any.", min=1)]
# Of the rows of `krakenlm perplexity` and `krakenlm superglue`, what stands in their runs' summaries.
SUMMARIES = {
    "perplexity": lambda rows: (
        {f"evaluation/{key}": rows[0][key] for key in ("loss", "perplexity", "bits_per_byte")}
        | named_values("evaluation/perplexity", rows[1:], "perplexity", "protocol")
    ),
    "superglue": lambda rows: named_values("superglue", rows, "value", "task", "metric"),
}


def score(
    stage: str, model: Path, on: Path | None, out: Path, name: str, seed: int, ranks: int, **settings: object
) -> None:
    """Have `evaluate` of krakenlm.evaluation.<stage> score a model, and show its rows."""
    gpus = ranks if count_gpus() else 0
    with writing_stage(stage, out, name=f"{name} seed {seed}", gpus=gpus) as run:
        evaluate = importlib.import_module(f"krakenlm.evaluation.{stage}").evaluate
        origin = {"name": name, "seed": seed, "run": folder_under_results(model)}
        rows = evaluate(model, on, out, **origin, ranks=ranks, **settings)
        run.table(stage, rows)
        run.summary(SUMMARIES[stage](rows))
        run.wrote(out.with_suffix(".parquet"), "result")


@commands.command()
def perplexity(
    model: ModelFolder,
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    out: Out,
    name: Annotated[str, typer.Option(help="Name in the table.")],
    seed: Seed = 0,
    scale: Scale = "",
    threads: Threads = 1,
    ranks: Ranks = 1,
    stride: Annotated[int | None, typer.Option(help="Also in windows that begin so many tokens apart.", min=1)] = None,
    authors_windows: Annotated[
        int, typer.Option(help="Also by the authors' protocol, on so many random windows.", min=0)
    ] = 0,
) -> None:
    """Score a model on the whole validation set."""
    protocols = {"stride": stride, "authors_windows": authors_windows}
    score("perplexity", model, tokens, out, name, seed, ranks, scale=scale, threads=threads, **protocols)


@commands.command()
def ngrams(
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json that made them.")],
    out: Out,
    scale: Scale = "",
) -> None:
    """Score a unigram, a bigram and a Kneser-Ney 5-gram on the same validation set."""
    with writing_stage("ngrams", out) as run:
        from krakenlm.evaluation.ngrams import evaluate

        rows = evaluate(tokens, tokenizer, out, scale=scale, run=folder_under_results(out.parent))
        run.table("perplexity", rows)
        run.summary(named_values("evaluation/perplexity", rows, "perplexity", "model"))


@commands.command()
def superglue(
    model: ModelFolder,
    out: Out,
    name: Annotated[str, typer.Option(help="Name in the table.")],
    tasks: Annotated[Path | None, typer.Option(help="Folder of local tasks; without it, the hub's.")] = None,
    seed: Seed = 0,
    scale: Scale = "",
    threads: Threads = 1,
    ranks: Ranks = 1,
) -> None:
    """Score a model on the eight SuperGLUE tasks through lm-eval."""
    score("superglue", model, tasks, out, name, seed, ranks, scale=scale, threads=threads)


@commands.command()
def compare(
    perplexity: Annotated[Path, typer.Option(help="Losses of documents, parquet.")],
    superglue: Annotated[Path, typer.Option(help="Predictions of examples, parquet.")],
    out: Out,
    loss_margin: Annotated[float, typer.Option(help="Nats a token that do not matter.")] = 0.02,
    score_margin: Annotated[float, typer.Option(help="Of scores from 0 to 1, what does not matter.")] = 0.02,
) -> None:
    """Compare every two models on the same documents and examples, over all seeds that both have."""
    with writing_stage("compare", out) as run:
        from krakenlm.evaluation.comparison import compare as stage

        run.table("comparisons", stage(perplexity, superglue, out, loss_margin, score_margin))


@commands.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with this project's models: --model_args path=FOLDER --tasks TASK,..."""
    from lm_eval.__main__ import cli_evaluate

    import krakenlm.evaluation  # noqa: F401 - registers the model

    sys.argv = ["lm-eval", *with_model(context.args)]
    cli_evaluate()


def with_model(words: list[str]) -> list[str]:
    """Words for lm-eval, with this project's model where they have arguments for a model but name none."""
    parser = argparse.ArgumentParser(prog="lm-eval", add_help=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--model_args", "-a", nargs="+")
    given, _ = parser.parse_known_args(words)
    return [*words, "--model", "krakenlm"] if given.model_args and given.model is None else list(words)
