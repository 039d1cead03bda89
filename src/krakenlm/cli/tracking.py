"""What Weights & Biases shows, and what it gets later."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def upload(
    results: Annotated[Path, typer.Argument(help="Folder of results, of one scale or all.")] = Path("results"),
    minutes: Annotated[float, typer.Option(help="Break off after this long.", min=0.1)] = 60,
) -> None:
    """Send to Weights & Biases what was kept offline; what went wrong can be sent again."""
    from krakenlm.tracking.upload import upload as send

    for line in send(results, minutes) or [f"{results}: nothing to send"]:
        print(line)


@commands.command()
def dashboard(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("results"),
) -> None:
    """Make or update the project's workspace on Weights & Biases, with panels for each stage; print its address."""
    from krakenlm.tracking.dashboard import create

    print(create(results))
