"""Models from elsewhere, and for elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from krakenlm.cli.stage import ModelFolder, folder_to_write, folder_under_results, model_name, writing_stage
from krakenlm.files import hold

imports = typer.Typer(
    help="Make a model folder of weights from elsewhere; only tensors are read.", no_args_is_help=True
)
exports = typer.Typer(help="Write a model folder in the form that another program reads.", no_args_is_help=True)

ImportedModel = Annotated[Path, typer.Argument(help="Model folder to write.", callback=folder_to_write)]
ImportedTokenizer = Annotated[
    Path | None, typer.Option(help="tokenizer.json for weights that come without one; equal to theirs otherwise.")
]


def import_with(read: Callable, source: Path | str, model: Path, tokenizer: Path | None) -> None:
    with writing_stage("import", model, name=model_name(model), kind="model"):
        read(source, model, tokenizer)


@imports.command("authors")
def import_authors(
    checkpoint: Annotated[Path, typer.Argument(help="ckpt.pt of the authors' release.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a checkpoint that the authors' release wrote."""
    from krakenlm.models.importing import import_authors as read

    import_with(read, checkpoint, model, tokenizer)


@imports.command("gpt2")
def import_gpt2(
    source: Annotated[str, typer.Argument(help="Folder, or name on the hub, of a Hugging Face GPT-2.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a Hugging Face GPT-2."""
    from krakenlm.models.importing import import_gpt2 as read

    import_with(read, source, model, tokenizer)


@imports.command("model")
def import_model(
    source: Annotated[Path, typer.Argument(help="Model folder of this project's.")],
    model: ImportedModel,
    tokenizer: ImportedTokenizer = None,
) -> None:
    """Read a model folder that was trained elsewhere."""
    from krakenlm.models.importing import import_model as read

    import_with(read, source, model, tokenizer)


@exports.command("hf")
def export_huggingface(
    model: ModelFolder,
    folder: Annotated[Path, typer.Argument(help="Folder to write; there must be none yet.", callback=folder_to_write)],
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
