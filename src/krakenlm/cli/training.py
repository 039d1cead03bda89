"""Tokens become a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import OutFolder, Seed, parse_json, writing_stage
from krakenlm.files import read_json

commands = typer.Typer()


@commands.command()
def train(
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, kept beside the weights.")],
    model: Annotated[str, typer.Option(help="Model configuration as JSON.")],
    recipe: Annotated[str, typer.Option(help="Training recipe as JSON.")],
    seed: Seed,
    out: OutFolder,
    watch: Annotated[
        str, typer.Option(envvar="KRAKENLM_WATCH", help="How the run is logged, checked and saved, as JSON.")
    ] = "{}",
    identity: Annotated[str, typer.Option(help="Hash of all that determines the weights.")] = "",
    name: Annotated[str, typer.Option(help="What to call the model.")] = "",
) -> None:
    """Train a model, or go on from its last intact checkpoint."""
    fields, settings = parse_json("model", model), parse_json("recipe", recipe) | parse_json("watch", watch)
    with writing_stage("train", out, name=f"{name} seed {seed}", gpus=settings.get("gpus", 0), kind="model") as run:
        from krakenlm.training.run import train as stage

        stage(tokens, tokenizer, fields, settings, seed, out, logger=run.lightning_logger(), identity=identity)
        metrics = read_json(out / "metrics.json")
        run.summary({key: metrics[key] for key in ("parameters", "tokens_seen", "validation_tokens", "timings")})
