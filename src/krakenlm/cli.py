"""The one program that does the work: `krakenlm <stage> --flags`, by hand or from a rule's shell line.

A stage's modules are imported inside its command (Lightning alone takes seconds), and the tracker is made here and
handed in: a stage never imports wandb.
"""

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from krakenlm import plan
from krakenlm.errors import InputError, RankError
from krakenlm.files import hold
from krakenlm.machine import count_gpus, keep_freed_memory, leased_gpus, refuse_missing_ranks

app = typer.Typer(
    help="Kraken (arXiv 2408.07802) from text to time to first token.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

imports = typer.Typer(
    help="Make a model folder of weights from elsewhere; only tensors are read.", no_args_is_help=True
)
app.add_typer(imports, name="import")
text_tools = typer.Typer(help="Look at text that was tokenized.", no_args_is_help=True)
app.add_typer(text_tools, name="text")

machines = typer.Typer(help="Describe machines for the simulator (config/hardware).", no_args_is_help=True)
measured_elsewhere = typer.Typer(help="From kernels that others have measured.", no_args_is_help=True)
app.add_typer(machines, name="hardware")
machines.add_typer(measured_elsewhere, name="import")
exports = typer.Typer(help="Write a model folder in the form that another program reads.", no_args_is_help=True)
app.add_typer(exports, name="export")

Out = Annotated[Path, typer.Option(help="What this stage writes.")]
Scale = Annotated[str, typer.Option(help="Scale, for the column of that name.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
ImportedModel = Annotated[Path, typer.Argument(help="Model folder to write.")]
ImportedTokenizer = Annotated[
    Path | None, typer.Option(help="tokenizer.json for weights that come without one; equal to theirs otherwise.")
]
Threads = Annotated[int, typer.Option(help="Threads that torch may use.")]


@contextlib.contextmanager
def writing_stage(
    stage: str,
    out: Path,
    parameters: dict,
    name: str = "",
    timing: bool = False,
    gpus: int = 0,
    reads: Sequence[Path] = (),
    kind: str = "result",
) -> Iterator:
    """Hold the output's lock and the machine's timing lock, and open the stage's W&B run.

    The run's config is the command line, `parameters` over it; `out` is its artifact, of this kind; the artifacts that
    it read are those of `reads` and of every path on the command line.
    Modules of the stage are imported inside, so that even their import disturbs no timing job. A timing stage gets its
    run afterwards: W&B's own process would run beside what is measured. Only the first process of a training that
    runs in several takes locks; the others end with it.
    """
    from krakenlm.inference.launch import die_with
    from krakenlm.tracking.run import Run, is_first_process

    if not is_first_process():
        die_with(os.getppid())
        yield Run()
        return
    shown = Shown()
    with locked(stage, out, timing), leased_gpus(gpus, stage):
        if timing:
            yield shown
        else:
            with tracked(stage, name, parameters, out, reads) as run:
                yield run
                run.wrote(out, kind)
    if timing:
        with tracked(stage, name, parameters, out, reads) as run:
            shown.on(run)
            run.wrote(out, kind)


@contextlib.contextmanager
def locked(stage: str, out: Path, timing: bool) -> Iterator[None]:
    """Be the only writer of `out`, and alone on the machine if this is a timing stage."""
    from krakenlm.latency.exclusive import TIMING_LOCK, alone, beside_others

    with hold(out, stage):
        plan.leave_to_successor(stage)
        with (alone if timing else beside_others)(TIMING_LOCK, stage):
            yield


class Shown:
    """What a stage shows, kept until there is a W&B run to show it on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def table(self, *arguments: object) -> None:
        self.calls.append(("table", arguments))

    def bars(self, *arguments: object) -> None:
        self.calls.append(("bars", arguments))

    def on(self, run: object) -> None:
        for method, arguments in self.calls:
            getattr(run, method)(*arguments)


@contextlib.contextmanager
def tracked(stage: str, name: str, parameters: dict, out: Path, reads: Sequence[Path]) -> Iterator:
    from krakenlm.tracking.run import start_run

    given, paths = command_line()
    with start_run(
        stage,
        name=f"{stage} {name}".strip(),
        group=os.environ.get("WANDB_RUN_GROUP", "by hand"),
        parameters=given | parameters,
        directory=os.environ.get("WANDB_DIR", "results"),
    ) as run:
        for path in [*reads, *paths]:
            if path != out:
                run.read(path)
        yield run


def command_line() -> tuple[dict, list[Path]]:
    """Every option and argument of the command that runs, JSON as what it holds, and all the paths among them."""
    context = click.get_current_context(silent=True)
    given = {key: value for key, value in (context.params if context else {}).items() if value is not None}
    values = [item for value in given.values() for item in (value if isinstance(value, list) else [value])]
    return {key: decoded(value) for key, value in given.items()}, [item for item in values if isinstance(item, Path)]


def decoded(value: object) -> object:
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def parse_json(option: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"--{option}: expected JSON, found {text!r} ({error}); correct it") from None
    if not isinstance(value, dict):
        raise InputError(f"--{option}: expected a JSON object, found {text!r}; correct it")
    return value


def check_keys(option: str, values: dict, function: Callable, given: set[str]) -> None:
    """Refuse settings that lack a key of `function`, or have one that it does not know.

    Raises:
        InputError: naming the key.
    """
    wanted = set(inspect.signature(function).parameters) - given
    for key in sorted(wanted ^ set(values)):
        expected, found = ("a value", "none") if key in wanted else ("no such key", repr(values[key]))
        raise InputError(f"--{option}: {key}: expected {expected}, found {found}; see config/README.md")


def folder_under_results(path: Path) -> str:
    """The `run` column: the folder, below results/<scale>/, that a row was made in."""
    below = path.resolve().as_posix().rpartition("/results/")[2]
    return below.partition("/")[2] if "/results/" in path.resolve().as_posix() else path.resolve().name


@app.command()
def corpus(
    text: Annotated[str, typer.Option(help="Keys of `text` as JSON.")],
    out: Out,
    shards: Annotated[int, typer.Option(help="In how many parts it is tokenized.", min=1)] = 1,
    processes: Annotated[int, typer.Option(help="Processes that read at once.", min=1)] = 1,
) -> None:
    """Find a corpus' documents and split them into training and validation."""
    settings = parse_json("text", text)
    with writing_stage("corpus", out, settings, kind="corpus") as run:
        from krakenlm.text import corpus as stage

        summary = stage.write(out, settings, shards, processes)
        run.summary({key: value for key, value in summary.items() if key != "pieces"})


@app.command()
def tasks(
    out: Out,
    seed: Seed = 0,
    examples: Annotated[int | None, typer.Option(help="Examples per task about the embedded world.")] = None,
    official: Annotated[Path | None, typer.Option(help="In their place, the folder of SuperGLUE's download.")] = None,
    split: Annotated[str, typer.Option(help="Of the download: train or val.")] = "val",
) -> None:
    """Write tasks in the eight SuperGLUE formats: about held-out stories of the embedded world, or SuperGLUE's own."""
    if (examples is None) == (official is None):
        raise InputError("tasks: expected one of --examples and --official; give one")
    with writing_stage("tasks", out, {}, kind="tasks"):
        if official is not None:
            from krakenlm.evaluation.official import convert

            convert(official, split, out)
        else:
            from krakenlm.text.embedded import write_tasks

            write_tasks(out, seed=seed, examples=examples)


@app.command()
def tokenizer(
    corpus: Annotated[Path, typer.Option(help="Corpus folder.")],
    out: Out,
    vocabulary: Annotated[int | None, typer.Option(help="Train a byte-level BPE of this size.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Take gpt2, a path or a name on the hub.")] = None,
) -> None:
    """Train a tokenizer on a corpus, or fetch a published one."""
    if (vocabulary is None) == (pretrained is None):
        raise InputError("tokenizer: expected one of --vocabulary and --pretrained; give one")
    with writing_stage("tokenizer", out, {}, kind="tokenizer"):
        from krakenlm.text.tokenizer import fetch_tokenizer, train_tokenizer

        if pretrained is None:
            train_tokenizer(corpus, vocabulary, out)
        else:
            fetch_tokenizer(pretrained, out)


@app.command()
def tokenize(
    corpus: Annotated[Path, typer.Option(help="Corpus folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json")],
    out: Out,
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
    with writing_stage("tokens", out, {}, kind="tokens") as run:
        from krakenlm.text.store import TokenStore
        from krakenlm.text.tokenizing import tokenize as stage

        stage(corpus, tokenizer, out, threads)
        run.summary(TokenStore(out).manifest)


@app.command()
def train(
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, kept beside the weights.")],
    model: Annotated[str, typer.Option(help="Model configuration as JSON.")],
    recipe: Annotated[str, typer.Option(help="Training recipe as JSON.")],
    seed: Seed,
    out: Out,
    watch: Annotated[
        str, typer.Option(envvar="KRAKENLM_WATCH", help="How the run is logged, checked and saved, as JSON.")
    ] = "{}",
    identity: Annotated[str, typer.Option(help="Hash of all that determines the weights.")] = "",
    name: Annotated[str, typer.Option(help="What to call the model.")] = "",
) -> None:
    """Train a model, or go on from its last intact checkpoint."""
    fields, settings = parse_json("model", model), parse_json("recipe", recipe) | parse_json("watch", watch)
    parameters = {"model": fields, "recipe": settings, "seed": seed, "identity": identity}
    with writing_stage(
        "train", out, parameters, name=f"{name} seed {seed}", gpus=settings.get("gpus", 0), kind="model"
    ) as run:
        from krakenlm.training.run import train as stage

        stage(tokens, tokenizer, fields, settings, seed, out, logger=run.lightning_logger(), identity=identity)


@app.command()
def perplexity(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    out: Out,
    name: Annotated[str, typer.Option(help="Name in the table.")],
    seed: Seed = 0,
    scale: Scale = "",
    threads: Threads = 1,
) -> None:
    """Score a model on the whole validation set."""
    gpus = min(1, count_gpus())
    with writing_stage("perplexity", out, {}, name=f"{name} seed {seed}", gpus=gpus) as run:
        from krakenlm.evaluation.perplexity import evaluate

        rows = evaluate(
            model, tokens, out, name=name, seed=seed, scale=scale, run=folder_under_results(model), threads=threads
        )
        run.table("perplexity", rows)


@app.command()
def ngrams(
    tokens: Annotated[Path, typer.Option(help="Tokens folder.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json that made them.")],
    out: Out,
    scale: Scale = "",
) -> None:
    """Score a unigram, a bigram and a Kneser-Ney 5-gram on the same validation set."""
    with writing_stage("ngrams", out, {}) as run:
        from krakenlm.evaluation.ngrams import evaluate

        run.table("perplexity", evaluate(tokens, tokenizer, out, scale=scale, run=folder_under_results(out.parent)))


@app.command()
def superglue(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    out: Out,
    name: Annotated[str, typer.Option(help="Name in the table.")],
    tasks: Annotated[Path | None, typer.Option(help="Folder of local tasks; without it, the hub's.")] = None,
    seed: Seed = 0,
    scale: Scale = "",
    threads: Threads = 1,
) -> None:
    """Score a model on the eight SuperGLUE tasks through lm-eval."""
    gpus = min(1, count_gpus())
    with writing_stage("superglue", out, {}, name=f"{name} seed {seed}", gpus=gpus) as run:
        from krakenlm.evaluation.superglue import evaluate

        rows = evaluate(
            model, tasks, out, name=name, seed=seed, scale=scale, run=folder_under_results(model), threads=threads
        )
        run.table("superglue", rows)


@app.command()
def compare(
    perplexity: Annotated[Path, typer.Option(help="Losses of documents, parquet.")],
    superglue: Annotated[Path, typer.Option(help="Predictions of examples, parquet.")],
    out: Out,
    loss_margin: Annotated[float, typer.Option(help="Nats a token that do not matter.")] = 0.02,
    score_margin: Annotated[float, typer.Option(help="Of scores from 0 to 1, what does not matter.")] = 0.02,
) -> None:
    """Compare every two models on the same documents and examples, over all seeds that both have."""
    with locked("compare", out, timing=False):
        from krakenlm.evaluation.comparison import compare as stage

        stage(perplexity, superglue, out, loss_margin, score_margin)


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with this project's models: --model_args path=FOLDER --tasks TASK,..."""
    from lm_eval.__main__ import cli_evaluate

    import krakenlm.evaluation  # noqa: F401 - registers the model

    words = list(context.args)
    if any(word.startswith("--model_args") for word in words) and "--model" not in words:
        words += ["--model", "krakenlm"]
    sys.argv = ["lm-eval", *words]
    cli_evaluate()


@app.command()
def shard(
    out: Out,
    tp: Annotated[int, typer.Option(help="Number of ranks.", min=1)],
    model: Annotated[Path | None, typer.Argument(help="Model folder.")] = None,
    random: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="SIZE ARCHITECTURE",
            help="In place of a model, random weights of this architecture, drawn on the device when a rank loads; "
            "SIZE is the standard model's: 1.3b, 6.7b, 13b, 65b, 175b, or n_layer, width, n_head as JSON.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
) -> None:
    """Write a model's weights as one file per rank, in TensorRT-LLM's checkpoint layout."""
    if (model is None) == (random is None):
        raise InputError("shard: expected one of a model folder and --random; give one")
    name = " ".join(random) if random else model.parent.name
    with writing_stage("shard", out, {}, name=f"{name} tp {tp}", kind="shards"):
        from krakenlm.inference.shards import write_random_shards, write_shards

        if model is not None:
            write_shards(model, out, tp)
        else:
            write_random_shards(random_config(*random, tp), out, tp, seed)


def random_config(size: str, architecture: str, tp: int) -> object:
    """The configuration of an architecture at a named size, or at the standard model's sizes as JSON."""
    from krakenlm.models import architecture_module, config_from_dict
    from krakenlm.models.sizing import sizes_of

    architecture_module(architecture)
    shape = shape_of("random", size)
    defaults = {"vocab_size": 50304, "block_size": 2048}
    return config_from_dict(defaults | shape | sizes_of(architecture, shape["width"], shape["n_head"], tp))


def shape_of(option: str, size: str) -> dict:
    """n_layer, width and n_head of a standard model, by its name or as JSON."""
    from krakenlm.models.sizing import SHAPES

    if size not in SHAPES and not size.startswith("{"):
        raise InputError(f"--{option}: expected one of {', '.join(SHAPES)}, or JSON, found {size!r}; choose one")
    shape = SHAPES.get(size) or parse_json(option, size)
    for key in ("n_layer", "width", "n_head"):
        if type(shape.get(key)) is not int or shape[key] < 1:
            raise InputError(
                f"--{option}: {key}: expected a whole number of at least 1, found {shape.get(key)}; set it"
            )
    return shape


@app.command()
def engines(
    engines: Annotated[list[str], typer.Argument(help="<model>/<seed folder>/tp<k>, below --root.")],
    root: Annotated[Path, typer.Option(help="Corpus folder, with models/ and engines/.")],
    tokens: Annotated[Path, typer.Option(help="Tokens folder, for prompts.")],
    settings: Annotated[str, typer.Option(help="Keys of `engines` as JSON.")],
    out: Out,
    scale: Scale = "",
) -> None:
    """Generate from sharded engines what their whole models generate, and time them."""
    options = parse_json("settings", settings)
    entries = []
    for engine in engines:
        folder = Path(engine)
        entries.append((folder.parts[0], root / "models" / folder.parent, root / "engines" / folder))
    folders = [folder for entry in entries for folder in entry[1:]]
    with writing_stage("engines", out, options, timing=True, gpus=count_gpus(), reads=folders) as run:
        from krakenlm.latency.engines import measure_engines

        check_keys("settings", options, measure_engines, {"entries", "tokens_dir", "out_csv", "scale", "run"})
        rows = measure_engines(
            entries, tokens_dir=tokens, out_csv=out, scale=scale, run=folder_under_results(root), **options
        )
        run.table("engines", rows)


@app.command()
def ttft(
    size: Annotated[str, typer.Argument(help="Name of the shape, for the table.")],
    shape: Annotated[str, typer.Option(help="n_layer, width and n_head as JSON.")],
    tp: Annotated[int, typer.Option(help="Number of ranks.")],
    settings: Annotated[str, typer.Option(help="The other keys of `latency` as JSON.")],
    out: Out,
    scale: Scale = "",
) -> None:
    """Time the first token of every architecture of one size, interleaved, alone on the machine."""
    options = parse_json("settings", settings) | parse_json("shape", shape)
    parameters, name = {"size": size, "tp": tp, **options}, f"{size} tp {tp}"
    with writing_stage("ttft", out, parameters, name, timing=True, gpus=count_gpus()) as run:
        from krakenlm.latency.ttft import measure_ttft

        check_keys("settings", options, measure_ttft, {"size", "tp", "out_csv", "scale", "run"})
        rows = measure_ttft(size=size, tp=tp, out_csv=out, scale=scale, run=folder_under_results(out.parent), **options)
        run.table("ttft", rows)
        run.bars("ttft_ms_median", rows, ("architecture", "context"), "ttft_ms_median")


@app.command()
def simulate(
    settings: Annotated[str, typer.Option(help="Keys of `simulation` as JSON.")],
    layers: Annotated[Path, typer.Option(help="What this writes of one layer of each model, for the report.")],
    out: Out,
    scale: Scale = "",
) -> None:
    """Predict the time to first token on hardware that is described in config/hardware."""
    options = parse_json("settings", settings)
    with writing_stage("simulate", out, options) as run:
        from krakenlm.latency.sweep import simulate_grid

        check_keys("settings", options, simulate_grid, {"out_csv", "layers_csv", "scale", "run"})
        rows = simulate_grid(
            out_csv=out, layers_csv=layers, scale=scale, run=folder_under_results(out.parent), **options
        )
        run.table("ttft_simulated", rows)


@app.command()
def timeline(
    size: Annotated[str, typer.Option(help="1.3b, 6.7b, 13b, 65b, 175b, or n_layer, width, n_head as JSON.")],
    hardware: Annotated[str, typer.Option(help="Name in config/hardware, or a file.")],
    architecture: Annotated[str, typer.Option(help="standard, standard-chunked, parallel, ladder, kraken")],
    tp: Annotated[int, typer.Option(help="Number of ranks.", min=1)],
    out: Out,
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 2048,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    decode: Annotated[bool, typer.Option(help="One token behind the context, not the prompt.")] = False,
    degree: Annotated[int | None, typer.Option(help="Kraken's splits; the larger of tp and 2 if none.", min=1)] = None,
    vocab_size: Annotated[int, typer.Option(min=1)] = 50304,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32")] = "float16",
) -> None:
    """Write a simulated forward for chrome://tracing or ui.perfetto.dev, and print where its time goes."""
    from krakenlm.latency.sweep import write_timeline

    parts = write_timeline(
        out,
        hardware=hardware,
        architecture=architecture,
        shape=shape_of("size", size),
        tp=tp,
        context=context,
        batch=batch,
        decode=decode,
        vocab_size=vocab_size,
        degree=degree,
        dtype=dtype,
    )
    for part, milliseconds in parts.items():
        print(f"{part:20} {milliseconds:10.3f} ms")


@app.command()
def collect(parts: Annotated[list[Path], typer.Argument(help="Tables of equal columns.")], out: Out) -> None:
    """Put the parts of a table together."""
    with writing_stage("collect", out, {}, name=out.stem):
        from krakenlm.report.tables import collect as stage

        stage(parts, out)


@app.command()
def report(
    metrics: Annotated[list[Path], typer.Argument(help="metrics.json of every model.")],
    perplexity: Annotated[Path, typer.Option()],
    superglue: Annotated[Path, typer.Option()],
    engines: Annotated[Path, typer.Option()],
    ttft: Annotated[Path, typer.Option()],
    corpus: Annotated[Path, typer.Option(help="corpus.json")],
    manifest: Annotated[Path, typer.Option(help="manifest.json")],
    config: Annotated[str, typer.Option(help="The whole configuration as JSON.")],
    run: Annotated[str, typer.Option(help="Where the record of this run goes, below results/.")],
    out: Out,
) -> None:
    """Write one self-contained page from result files."""
    with writing_stage("report", out, {}, kind="report") as wandb_run:
        from krakenlm.report.build import build
        from krakenlm.report.environment import record

        run_json = out.parent / run
        wandb_run.summary(record(run_json, parse_json("config", config), metrics))
        build(
            perplexity_csv=perplexity,
            superglue_csv=superglue,
            ttft_csv=ttft,
            engines_csv=engines,
            metrics=metrics,
            corpus_json=corpus,
            manifest_json=manifest,
            run_json=run_json,
            out_html=out,
        )


@text_tools.command("stats")
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


@text_tools.command("peek")
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


@imports.command("authors")
def import_authors(
    checkpoint: Annotated[Path, typer.Argument(help="ckpt.pt of the authors' release.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a checkpoint that the authors' release wrote."""
    from krakenlm.models.importing import import_authors as read

    with writing_stage("import", model, {}, name=model.name, kind="model"):
        read(checkpoint, model, tokenizer)


@imports.command("gpt2")
def import_gpt2(
    source: Annotated[str, typer.Argument(help="Folder, or name on the hub, of a Hugging Face GPT-2.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a Hugging Face GPT-2."""
    from krakenlm.models.importing import import_gpt2 as read

    with writing_stage("import", model, {}, name=model.name, kind="model"):
        read(source, model, tokenizer)


@imports.command("model")
def import_model(
    source: Annotated[Path, typer.Argument(help="Model folder of this project's.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a model folder that was trained elsewhere."""
    from krakenlm.models.importing import import_model as read

    with writing_stage("import", model, {}, name=model.name, kind="model"):
        read(source, model, tokenizer)


@exports.command("hf")
def export_huggingface(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; there must be none yet.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json for a model without one; equal to its own otherwise.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder with perplexity.csv and superglue.csv, for the model card.")
    ] = None,
    weights_license: Annotated[
        str | None, typer.Option("--license", help="License of the weights, for the model card: mit, cc-by-4.0, ...")
    ] = None,
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM loads."""
    from krakenlm.export.huggingface import export_huggingface as write

    with hold(folder, "export"):
        write(model, folder, tokenizer, scores, folder_under_results(model), weights_license)


@machines.command("calibrate")
def calibrate_hardware(
    out: Annotated[Path, typer.Option(help="Description to write.")] = Path("config/hardware/this-machine.yaml"),
    ranks: Annotated[int, typer.Option(help="Ranks that run together.", min=1)] = 1,
    threads: Threads = 1,
    link: Annotated[str, typer.Option(help="Between CPU ranks: loopback, or a rate such as 1gbit.")] = "loopback",
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32")] = "float32",
) -> None:
    """Measure this machine, CPU or GPUs, alone on it, and describe it."""
    parameters = {"ranks": ranks, "threads": threads, "link": link, "dtype": dtype}
    with writing_stage("calibrate", out, parameters, timing=True, gpus=count_gpus()):
        from krakenlm.latency.calibrate import calibrate

        calibrate(out, **parameters)


@measured_elsewhere.command("aiconfigurator")
def import_aiconfigurator(
    clone: Annotated[Path, typer.Argument(help="Folder of a clone of ai-dynamo/aiconfigurator, after git lfs pull.")],
    system: Annotated[str, typer.Option(help="A name below its systems/, such as h100_sxm.")],
    out: Annotated[
        Path | None, typer.Option(help="Description to write; config/hardware/<system>.yaml if none.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Of TensorRT-LLM's kernels; the newest if none.")] = None,
) -> None:
    """Describe a system whose kernels NVIDIA has measured."""
    from krakenlm.latency.aiconfigurator import write_system

    out = out or Path(f"config/hardware/{system}.yaml")
    with hold(out, "hardware"):
        write_system(clone, system, out, version)


@app.command()
def upload(
    results: Annotated[Path, typer.Argument(help="Folder of results, of one scale or all.")] = Path("results"),
    minutes: Annotated[float, typer.Option(help="Break off after this long.", min=0.1)] = 60,
) -> None:
    """Send to Weights & Biases what was kept offline; what went wrong can be sent again."""
    from krakenlm.tracking.upload import upload as send

    for line in send(results, minutes) or [f"{results}: nothing to send"]:
        print(line)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")],
    tokens: Annotated[int, typer.Option(help="At most this many new tokens.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")] = None,
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
    threads = max(1, len(os.sched_getaffinity(0)) // tp)
    refuse_missing_ranks("tp", tp, threads, count_gpus())
    from krakenlm.inference.complete import complete

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed} if temperature else None
    print(prompt, end="", flush=True)
    for piece in complete(model, prompt, tokens, sampling, tp, threads):
        print(piece, end="", flush=True)
    print()


def main() -> None:
    """Run a command; the user's mistakes end in one line and status 2, a rank's end in its traceback and status 1."""
    keep_freed_memory()
    try:
        app()
    except InputError as error:
        print(f"krakenlm: {error}", file=sys.stderr)
        sys.exit(2)
    except RankError as error:
        print(f"krakenlm: {error}", file=sys.stderr)
        sys.exit(1)
