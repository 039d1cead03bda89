"""What a run will cost, before it starts."""

from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import parse_json
from krakenlm.machine import count_gpus, leased_gpus

commands = typer.Typer()


@commands.command()
def plan(
    scale: Annotated[str | None, typer.Option(help="tiny, single-gpu, paper, auto; config.yaml's if none.")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Name in config/hardware, a file, or auto, this machine's GPUs.")
    ] = None,
    utilisation: Annotated[float | None, typer.Option(help="Share of the peak that training reaches.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure on this machine what training reaches.")] = False,
    config: Annotated[str, typer.Option(help="Keys over config.yaml, as JSON.")] = "{}",
) -> None:
    """Say what a scale costs from nothing: tokens, FLOPs, hours, disk, and whether it fits in memory."""
    from krakenlm import config as settings
    from krakenlm import price
    from krakenlm.inference.tensorrt import available

    budget = {"hardware": hardware, "utilisation": utilisation}
    given = settings.merge(settings.own_config(), parse_json("config", config))
    given = settings.merge(given, {"budget": {key: value for key, value in budget.items() if value is not None}})
    wanted = scale or given["scale"]
    found = settings.auto_scale(main_process=True) if wanted == "auto" else wanted
    merged, _ = settings.load(given, found, Path())
    missing = available.missing(merged["device"], settings.most_ranks(merged), environments=False)
    merged["engine"] = settings.find_engine(merged["engine"], missing, main_process=True)
    if not measure:
        print(price.of_everything(merged))
        return
    from krakenlm.latency.exclusive import TIMING_LOCK, alone

    here = count_gpus()
    with alone(TIMING_LOCK, "plan"), leased_gpus(1 if price.most_gpus(merged) else 0, "plan"):
        print(price.of_everything(merged, price.measured_devices(merged, here)))
