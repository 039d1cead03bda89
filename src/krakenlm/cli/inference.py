"""Models become sharded engines, and generate."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import ModelFolder, Out, OutFolder, Seed, model_name, model_to_read, shape_of, writing_stage
from krakenlm.errors import InputError
from krakenlm.machine import cores, count_gpus, refuse_missing_ranks
from krakenlm.values import Dtype

commands = typer.Typer()


@commands.command()
def shard(
    out: OutFolder,
    tp: Annotated[int, typer.Option(help="Number of ranks.", min=1)],
    model: Annotated[Path | None, typer.Argument(help="Model folder.", callback=model_to_read)] = None,
    random: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="SIZE ARCHITECTURE",
            help="In place of a model, random weights of this architecture, drawn on the device when a rank loads; "
            "SIZE is the standard model's: 1.3b, 6.7b, 13b, 65b, 175b, or n_layer, width, n_head as JSON.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights, and of what is computed.")] = "float32",
) -> None:
    """Write a model's weights as one file per rank, in TensorRT-LLM's checkpoint layout."""
    if (model is None) == (random is None):
        raise InputError("shard: expected one of a model folder and --random; give one")
    name = " ".join(random) if random else model_name(model)
    with writing_stage("shard", out, name=f"{name} tp {tp}", kind="shards") as run:
        from krakenlm.inference.shards import write_random_shards, write_shards

        if model is not None:
            write_shards(model, out, tp, dtype)
        else:
            write_random_shards(random_config(*random, tp), out, tp, seed, dtype)
        sizes = [file.stat().st_size for file in out.glob("rank*.safetensors")]  # none of random weights
        run.summary({"shards/ranks": tp} | ({"shards/largest_file_bytes": max(sizes)} if sizes else {}))


def random_config(size: str, architecture: str, tp: int) -> object:
    """The configuration of an architecture at a named size, or at the standard model's sizes as JSON."""
    from krakenlm.models import architecture_module, config_from_dict
    from krakenlm.models.sizing import sizes_of

    architecture_module(architecture)
    shape = shape_of("random", size)
    defaults = {"vocab_size": 50304, "block_size": 2048}
    return config_from_dict(defaults | shape | sizes_of(architecture, shape["width"], shape["n_head"], tp))


@commands.command()
def generate(
    model: ModelFolder,
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")],
    tokens: Annotated[int, typer.Option(help="At most this many new tokens.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.", min=0)] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.", min=1)] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest with this probability together.")] = 1.0,
    seed: Seed = 0,
    tp: Annotated[int, typer.Option(help="Number of ranks, each a process with a GPU or cores of its own.", min=1)] = 1,
) -> None:
    """Continue a text, printing it as it comes."""
    if not temperature and (top_k is not None or top_p != 1.0):
        raise InputError(
            "--temperature: expected a number above 0 beside --top-k or --top-p, found 0, the likeliest token; "
            "raise it, or leave the other out"
        )
    threads = max(1, cores() // tp)
    refuse_missing_ranks("tp", tp, threads, count_gpus())
    from krakenlm.inference.complete import complete

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed} if temperature else None
    text = complete(model, prompt, tokens, sampling, tp, threads)
    # Once there is something to follow it: a model that cannot be loaded prints nothing but why.
    print(prompt + next(text, ""), end="", flush=True)
    for piece in text:
        print(piece, end="", flush=True)
    print()


@commands.command()
def samples(
    models: Annotated[list[Path], typer.Argument(help="Model folders.")],
    tokens: Annotated[Path, typer.Option(help="Tokens folder; validation documents begin the samples.")],
    out: Out,
    seed: Seed = 0,
) -> None:
    """Let every model go on from the same beginnings of validation documents."""
    with writing_stage("samples", out) as run:
        from krakenlm.inference.samples import write_samples as stage

        run.table("samples", stage(models, tokens, out, seed=seed))
