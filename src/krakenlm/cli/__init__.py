"""The one program that does the work: `krakenlm <stage> --flags`, by hand or from a rule's shell line.

A stage's modules are imported inside its command (Lightning alone takes seconds), and the tracker is made here and
handed in: a stage never imports wandb.
"""

import sys

import typer

from krakenlm.cli import evaluation, inference, latency, models, plan, report, status, text, tracking, training
from krakenlm.errors import InputError, RankError
from krakenlm.machine import keep_freed_memory

app = typer.Typer(
    help="Kraken (arXiv 2408.07802) from text to time to first token.",
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
