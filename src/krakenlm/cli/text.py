"""Text becomes tokens: corpus, tasks about it, tokenizer, tokens, and a look at them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import Out, OutFolder, Seed, locked, parse_json, writing_stage
from krakenlm.config.text import TEXT_DEFAULTS
from krakenlm.errors import InputError

commands = typer.Typer()
tools = typer.Typer(help="Look at text that was tokenized.", no_args_is_help=True)


@commands.command()
def corpus(
    text: Annotated[str, typer.Option(help="Keys of `text` as JSON.")],
    out: OutFolder,
    shards: Annotated[int, typer.Option(help="In how many parts it is tokenized.", min=1)] = 1,
    processes: Annotated[int, typer.Option(help="Processes that read at once.", min=1)] = 1,
) -> None:
    """Find a corpus' documents and split them into training and validation."""
    given = parse_json("text", text)
    settings = TEXT_DEFAULTS.get(str(given.get("source")), {}) | given
    with writing_stage("corpus", out, kind="corpus") as run:
        from krakenlm.text import corpus as stage

        summary = stage.write(out, settings, shards, processes)
        run.summary({key: value for key, value in summary.items() if key != "pieces"})


@commands.command()
def tasks(
    out: OutFolder,
    seed: Seed = 0,
    examples: Annotated[int | None, typer.Option(help="Examples per task about the embedded world.")] = None,
    official: Annotated[Path | None, typer.Option(help="In their place, the folder of SuperGLUE's download.")] = None,
    split: Annotated[str, typer.Option(help="Of the download: train or val.")] = "val",
) -> None:
    """Write tasks in the eight SuperGLUE formats: about held-out stories of the embedded world, or SuperGLUE's own."""
    if (examples is None) == (official is None):
        raise InputError("tasks: expected one of --examples and --official; give one")
    with writing_stage("tasks", out, kind="tasks"):
        if official is not None:
            from krakenlm.evaluation.official import convert

            convert(official, split, out)
        else:
            from krakenlm.text.embedded import write_tasks

            write_tasks(out, seed=seed, examples=examples)


@commands.command()
def tokenizer(
    corpus: Annotated[Path, typer.Option(help="Corpus folder.")],
    out: Out,
    vocabulary: Annotated[int | None, typer.Option(help="Train a byte-level BPE of this size.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Take gpt2, a path or a name on the hub.")] = None,
) -> None:
    """Train a tokenizer on a corpus, or fetch a published one."""
    if (vocabulary is None) == (pretrained is None):
        raise InputError("tokenizer: expected one of --vocabulary and --pretrained; give one")
    with writing_stage("tokenizer", out, kind="tokenizer"):
        from krakenlm.text.tokenizer import fetch_tokenizer, train_tokenizer

        if pretrained is None:
            train_tokenizer(corpus, vocabulary, out)
        else:
            fetch_tokenizer(pretrained, out)


@commands.command()
def tokenize(
    corpus: Annotated[Path, typer.Option(help="Corpus folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json")],
    out: OutFolder,
    shard: Annotated[int | None, typer.Option(help="Only this shard, for a later call without it.", min=0)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the tokenizer; all cores unless given.")] = None,
) -> None:
    """Write both splits of a corpus as token ids, or one shard of them."""
    if threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
    if shard is not None:
        # One of hundreds of jobs: the tokens stage's run speaks for them.
        with locked(f"shard {shard}", out / "shards" / f"{shard:05d}.json", timing=False):
            from krakenlm.text.tokenizing import tokenize_shard

            tokenize_shard(corpus, tokenizer, out / "shards", shard, threads)
        return
    with writing_stage("tokens", out, kind="tokens") as run:
        from krakenlm.text.store import TokenStore
        from krakenlm.text.tokenizing import tokenize as stage

        stage(corpus, tokenizer, out, threads)
        run.summary(TokenStore(out).manifest)


@tools.command("stats")
def text_stats(tokens: Annotated[Path, typer.Argument(help="Tokens folder.")]) -> None:
    """Show how much text there is and how long its documents are, in tokens."""
    from krakenlm.text.inspecting import statistics
    from krakenlm.text.store import TokenStore

    rows = statistics(tokens)
    for key in rows[0]:
        print(f"{key:16}" + "".join(f"{row[key]:>20,}" if key != "split" else f"{row[key]:>20}" for row in rows))
    duplicates = TokenStore(tokens).manifest["duplicates"]
    if duplicates is not None:
        print(f"{'duplicates':16}{duplicates:>20.2%}  of all documents stood in an earlier one")


@tools.command("peek")
def text_peek(
    tokens: Annotated[Path, typer.Argument(help="Tokens folder.")],
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json; beside the folder unless given.")] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    count: Annotated[int, typer.Option(help="How many samples.", min=1)] = 3,
    length: Annotated[int, typer.Option(help="Tokens of each.", min=1)] = 100,
    seed: Seed = 0,
) -> None:
    """Show samples of the tokens as text."""
    from krakenlm.text.inspecting import samples

    beside = tokens.resolve().parent / "tokenizer.json"
    for start, sample in samples(tokens, tokenizer or beside, split, count, length, seed):
        print(f"--- {split}, from token {start:,}\n{sample}")
