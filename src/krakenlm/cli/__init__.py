"""The one program that does the work: `krakenlm <stage> --flags`, by hand or from a rule's shell line.

A stage's modules are imported inside its command (Lightning alone takes seconds), and the tracker is made here and
handed in: a stage never imports wandb.
"""

import sys
from typing import Annotated

import typer

from krakenlm.cli import evaluation, inference, latency, models, plan, report, status, text, tracking, training
from krakenlm.errors import InputError, RankError
from krakenlm.machine import keep_freed_memory
from krakenlm.version import code_version

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (plan, text, training, evaluation, inference, latency, report, status, tracking):
    app.add_typer(part.commands)
for group, tools in {
    "import": models.imports,
    "text": text.tools,
    "hardware": latency.machines,
    "export": models.exports,
}.items():
    app.add_typer(tools, name=group)


def show_version(wanted: bool) -> None:
    """Print the version, and end."""
    if wanted:
        code = code_version()
        commit = f", commit {code['commit'][:12]}{', modified' if code['modified'] else ''}" if "commit" in code else ""
        print(f"krakenlm {code['version']}{commit}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and a clone's commit.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Kraken (arXiv 2408.07802) from text to time to first token."""


def as_typed(message: str, words: list[str]) -> str:
    """An error whose first word is the name of a parameter, by which stages know it, with the option that was typed."""
    command = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    name, colon, rest = message.partition(":")
    for parameter in command.params:
        if name == parameter.name and parameter.opts[0].startswith("--"):
            return f"{parameter.opts[0]}{colon}{rest}"
    return message


def main() -> None:
    """Run a command; the user's mistakes end in one line and status 2, a rank's end in its traceback and status 1."""
    keep_freed_memory()
    try:
        app()
    except InputError as error:
        print(f"krakenlm: {as_typed(str(error), sys.argv[1:])}", file=sys.stderr)
        sys.exit(2)
    except RankError as error:
        print(f"krakenlm: {error}", file=sys.stderr)
        sys.exit(1)
