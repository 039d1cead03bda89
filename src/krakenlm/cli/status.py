"""How a run of Snakemake stands."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def status(results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results")) -> None:
    """Show what of the reproduction is done, running, left and failed, with the ends of the failed logs."""
    from krakenlm import status as runs

    for line in runs.describe(results):
        print(line)
