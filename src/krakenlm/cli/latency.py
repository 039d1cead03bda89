"""Engines become latencies, measured and simulated; machines become descriptions for the simulator."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import (
    Out,
    Scale,
    Threads,
    check_shape,
    file_to_write,
    folder_under_results,
    named_values,
    parse_json,
    shape_of,
    writing_stage,
)
from krakenlm.files import hold
from krakenlm.machine import count_gpus, refuse_missing_ranks
from krakenlm.values import Dtype, HeadRule, check_arguments

# What tells a row of the simulated table from the others.
SIMULATED = ("hardware", "size", "tp", "batch", "context", "architecture", "degree")

commands = typer.Typer()
machines = typer.Typer(help="Describe machines for the simulator (config/hardware).", no_args_is_help=True)
measured_elsewhere = typer.Typer(help="From kernels that others have measured.", no_args_is_help=True)
machines.add_typer(measured_elsewhere, name="import")


def with_settings(
    measure: Callable, settings: dict, out: Path, scale: str, made_in: Path, **given: object
) -> list[dict]:
    """The rows of `measure`, whose other parameters are exactly the keys of --settings.

    Raises:
        InputError: a key is missing, unknown or of another kind.
    """
    given |= {"out_csv": out, "scale": scale, "run": folder_under_results(made_in)}
    check_arguments("--settings", settings, measure, set(given))
    return measure(**given, **settings)


@commands.command()
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
    with writing_stage("engines", out, timing=True, gpus=count_gpus(), reads=folders) as run:
        from krakenlm.latency.engines import measure_engines

        rows = with_settings(measure_engines, options, out, scale, root, entries=entries, tokens_dir=tokens)
        run.table("engines", rows)
        for column in ("identical", "ttft_ms_median", "tokens_per_second"):
            run.summary(named_values(f"engines/{column}", rows, column, "model", "seed", "tp", "engine"))


@commands.command()
def ttft(
    size: Annotated[str, typer.Argument(help="Name of the shape, for the table.")],
    shape: Annotated[str, typer.Option(help="1.3b, 6.7b, 13b, 65b, 175b, or n_layer, width, n_head as JSON.")],
    tp: Annotated[int, typer.Option(help="Number of ranks.", min=1)],
    settings: Annotated[str, typer.Option(help="The other keys of `latency` as JSON.")],
    breakdown: Annotated[Path, typer.Option(help="What this writes of where the time goes.", callback=file_to_write)],
    out: Out,
    scale: Scale = "",
) -> None:
    """Time the first token of every architecture of one size, interleaved, alone on the machine."""
    options = parse_json("settings", settings) | shape_of("shape", shape)
    if isinstance(options.get("threads"), int):  # of another type, it is refused with the other settings
        refuse_missing_ranks("--tp", tp, options["threads"], count_gpus())
    with writing_stage("ttft", out, f"{size} tp {tp}", timing=True, gpus=count_gpus(), writes=[breakdown]) as run:
        from krakenlm.latency.ttft import measure_ttft

        rows = with_settings(measure_ttft, options, out, scale, out.parent, size=size, tp=tp, breakdown_csv=breakdown)
        run.wrote(breakdown, "result")
        run.table("ttft", rows)
        run.bars("ttft_ms_median", rows, ("architecture", "context", "link"), "ttft_ms_median")
        for column in ("ttft_ms_median", "speedup_vs_standard"):
            run.lines(column, rows, "context", column, ("architecture", "link"))
            run.summary(named_values(f"ttft/{column}", rows, column, "architecture", "context", "link"))


@commands.command()
def simulate(
    settings: Annotated[str, typer.Option(help="Keys of `simulation` as JSON.")],
    layers: Annotated[
        Path, typer.Option(help="What this writes of one layer of each model, for the report.", callback=file_to_write)
    ],
    out: Out,
    scale: Scale = "",
) -> None:
    """Predict the time to first token on hardware that is described in config/hardware."""
    options = parse_json("settings", settings)
    sizes = options.get("sizes")
    for name, shape in sizes.items() if isinstance(sizes, dict) else ():
        if isinstance(shape, dict):
            check_shape(f"--settings: sizes: {name}", shape)
    with writing_stage("simulate", out, writes=[layers]) as run:
        from krakenlm.latency.sweep import simulate_grid

        rows = with_settings(simulate_grid, options, out, scale, out.parent, layers_csv=layers)
        run.table("ttft_simulated", rows)
        run.summary(named_values("simulated/speedup_vs_standard", rows, "speedup_vs_standard", *SIMULATED))
        run.wrote(layers, "result")


@commands.command()
def timeline(
    size: Annotated[str, typer.Option(help="1.3b, 6.7b, 13b, 65b, 175b, or n_layer, width, n_head as JSON.")],
    hardware: Annotated[str, typer.Option(help="Name in config/hardware, or a file.")],
    architecture: Annotated[str, typer.Option(help="An architecture, or standard-chunked.")],
    tp: Annotated[int, typer.Option(help="Number of ranks.", min=1)],
    out: Out,
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 2048,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    decode: Annotated[bool, typer.Option(help="One token behind the context, not the prompt.")] = False,
    degree: Annotated[int | None, typer.Option(help="Kraken's splits; the larger of tp and 2 if none.", min=1)] = None,
    vocab_size: Annotated[int, typer.Option(min=1)] = 50304,
    dtype: Annotated[Dtype, typer.Option()] = "float16",
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


@commands.command()
def advise(
    hardware: Annotated[str, typer.Option(help="Name in config/hardware, or a file.")],
    parameters: Annotated[float, typer.Option("--params", help="Of every model, such as 7e9.", min=1)],
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 2048,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    tp: Annotated[
        list[int] | None, typer.Option(help="Ranks, may be repeated; powers of two within a machine if none.", min=1)
    ] = None,
    perplexity_csv: Annotated[
        Path | None, typer.Option("--perplexity", help="results/perplexity.csv, for what quality costs.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=1)] = 50304,
    heads: Annotated[HeadRule, typer.Option(help="What of standard's a Kraken's heads keep.")] = "head_size",
    dtype: Annotated[Dtype, typer.Option()] = "float16",
    out: Annotated[
        Path | None, typer.Option(help="Also write the advice there as CSV.", callback=file_to_write)
    ] = None,
) -> None:
    """Rank architectures, degrees and ranks on a machine by predicted time to first token, at equal parameters."""
    from krakenlm.latency import advise as advice

    rows = advice.advise(
        hardware=hardware,
        parameters=parameters,
        context=context,
        batch=batch,
        tp=tp or [],
        vocab_size=vocab_size,
        heads=heads,
        dtype=dtype,
        perplexity_csv=perplexity_csv,
        out_csv=out,
    )
    print("\n".join(advice.lines(rows)))


@machines.command("calibrate")
def calibrate_hardware(
    out: Annotated[Path, typer.Option(help="Description to write.", callback=file_to_write)] = Path(
        "config/hardware/this-machine.yaml"
    ),
    ranks: Annotated[int, typer.Option(help="Ranks that run together.", min=1)] = 1,
    threads: Threads = 1,
    link: Annotated[str, typer.Option(help="Between CPU ranks: loopback, or a rate such as 1gbit.")] = "loopback",
    dtype: Annotated[Dtype, typer.Option()] = "float32",
) -> None:
    """Measure this machine, CPU or GPUs, alone on it, and describe it."""
    refuse_missing_ranks("--ranks", ranks, threads, count_gpus())
    with writing_stage("calibrate", out, timing=True, gpus=count_gpus()):
        from krakenlm.latency.calibrate import calibrate

        calibrate(out, ranks=ranks, threads=threads, link=link, dtype=dtype)


@measured_elsewhere.command("aiconfigurator")
def import_aiconfigurator(
    clone: Annotated[Path, typer.Argument(help="Folder of a clone of ai-dynamo/aiconfigurator, after git lfs pull.")],
    system: Annotated[str, typer.Option(help="A name below its systems/, such as h100_sxm.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Description to write; config/hardware/<system>.yaml if none.", callback=file_to_write),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Of TensorRT-LLM's kernels; the newest if none.")] = None,
) -> None:
    """Describe a system whose kernels NVIDIA has measured."""
    from krakenlm.latency.aiconfigurator import write_system

    out = out or Path(f"config/hardware/{system}.yaml")
    with hold(out, "hardware"):
        write_system(clone, system, out, version)
