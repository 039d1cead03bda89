"""What the stages' commands share: their options, their locks and W&B runs, and settings given as JSON."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_current_context

from krakenlm.errors import InputError
from krakenlm.files import hold
from krakenlm.machine import die_with, leased_gpus
from krakenlm.values import Count, check_arguments


def named(parameter: typer.CallbackParam) -> str:
    """An option or argument as it is typed."""
    return max(parameter.opts, key=len)


def file_to_write(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        InputError: naming the option.
    """
    if path is not None and os.path.isdir(path):
        raise InputError(f"{named(parameter)}: expected a file to write, found the folder {path}; name a file")
    return place_to_write(parameter, path)


def model_to_read(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse a model folder that is not there before anything is waited for.

    Raises:
        InputError: naming the argument.
    """
    if path is not None and not os.path.isdir(path):
        raise InputError(
            f"{named(parameter)}: {path}: expected a model folder, found none; correct the path, or train or import a "
            "model"
        )
    return path


def folder_to_write(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """The same for a folder."""
    if path is not None and os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{named(parameter)}: expected a folder to write, found the file {path}; name a folder")
    return place_to_write(parameter, path)


def place_to_write(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    if path is not None:
        # os.path's: pathlib's raise PermissionError in a folder of another user's.
        above = next(each for each in path.absolute().parents if os.path.exists(each))
        if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
            raise InputError(
                f"{named(parameter)}: expected a place to write {path}, found {above}, which is no folder or not to be "
                "written; name another"
            )
    return path


Out = Annotated[Path, typer.Option(help="What this stage writes.", callback=file_to_write)]
OutFolder = Annotated[Path, typer.Option(help="Folder that this stage writes.", callback=folder_to_write)]
ModelFolder = Annotated[Path, typer.Argument(help="Model folder.", callback=model_to_read)]
Scale = Annotated[str, typer.Option(help="Scale, for the column of that name.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that torch may use.")]


@contextlib.contextmanager
def writing_stage(
    stage: str,
    out: Path,
    name: str = "",
    timing: bool = False,
    gpus: int = 0,
    reads: Sequence[Path] = (),
    writes: Sequence[Path | None] = (),
    kind: str = "result",
) -> Iterator:
    """Hold the output's lock and the machine's timing lock, and open the stage's W&B run.

    The run's config is the command line; `out` is its artifact, of this kind; the artifacts that it read are those of
    `reads` and of every path on the command line but `out` and `writes`, which it writes beside it.
    Modules of the stage are imported inside, so that even their import disturbs no timing job. A timing stage gets its
    run afterwards: W&B's own process would run beside what is measured. Only the first process of a training that
    runs in several takes locks; the others end with it.
    """
    from krakenlm.tracking.run import is_first_process

    if not is_first_process():
        die_with(os.getppid())
        with tracked(stage, name, reads, (out, *writes)) as run:
            yield run
        return
    shown = Shown()
    with locked(stage, out, timing), leased_gpus(gpus, stage):
        if timing:
            yield shown
        else:
            with tracked(stage, name, reads, (out, *writes)) as run:
                yield run
                run.wrote(out, kind)
    if timing:
        with tracked(stage, name, reads, (out, *writes)) as run:
            shown.on(run)
            run.wrote(out, kind)


@contextlib.contextmanager
def locked(stage: str, out: Path, timing: bool) -> Iterator[None]:
    """Be the only writer of `out`, and alone on the machine if this is a timing stage."""
    from krakenlm.latency.exclusive import TIMING_LOCK, alone, beside_others
    from krakenlm.plan import leave_to_successor

    with hold(out, stage):
        leave_to_successor(stage)
        with (alone if timing else beside_others)(TIMING_LOCK, stage):
            yield


class Shown:
    """What a stage shows (`Run.table`, `bars`, `lines`, `summary`), kept until there is a W&B run to show it on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((method, arguments))

    def on(self, run: object) -> None:
        for method, arguments in self.calls:
            getattr(run, method)(*arguments)


def named_values(prefix: str, rows: Sequence[Mapping], column: str, *labels: str) -> dict:
    """Summary values of a run, one for each row that has a value in `column`: `prefix/label/label` and the value."""
    filled = [row for row in rows if row.get(column) not in (None, "")]
    return {"/".join([prefix, *(str(row[label]) for label in labels)]): row[column] for row in filled}


@contextlib.contextmanager
def tracked(stage: str, name: str, reads: Sequence[Path], writes: Sequence[Path | None]) -> Iterator:
    from krakenlm.tracking.run import start_run

    parameters, paths = command_line()
    with start_run(
        stage,
        name=f"{stage} {name}".strip(),
        group=os.environ.get("WANDB_RUN_GROUP", "by hand"),
        parameters=parameters,
        directory=os.environ.get("WANDB_DIR", "results"),
    ) as run:
        for path in [*reads, *paths]:
            if path not in writes:
                run.read(path)
        yield run


def command_line() -> tuple[dict, list[Path]]:
    """Every option and argument of the command that runs, JSON as what it holds, and all the paths among them."""
    # Typer's own: it carries a click of its own, and the package `click` knows nothing of its commands.
    context = get_current_context(silent=True)
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


def model_name(folder: Path) -> str:
    """`standard seed0` of models/standard/seed0-<hash>; of a folder elsewhere its name."""
    seed, found, _ = folder.name.partition("-")
    return f"{folder.parent.name} {seed}" if found and seed.startswith("seed") else folder.name


def folder_under_results(path: Path) -> str:
    """The `run` column: the folder, below results/<scale>/, that a row was made in."""
    below = path.resolve().as_posix().rpartition("/results/")[2]
    return below.partition("/")[2] if "/results/" in path.resolve().as_posix() else path.resolve().name


def shape_of(option: str, size: str) -> dict:
    """n_layer, width and n_head of a standard model, by its name or as JSON."""
    from krakenlm.models.sizing import SHAPES

    if size not in SHAPES and not size.startswith("{"):
        raise InputError(f"--{option}: expected one of {', '.join(SHAPES)}, or JSON, found {size!r}; choose one")
    return check_shape(f"--{option}", SHAPES.get(size) or parse_json(option, size))


def check_shape(where: str, shape: Mapping) -> dict:
    """A shape, once it is known to be n_layer, width and n_head alone.

    Raises:
        InputError: naming the key.
    """

    def of_standard(n_layer: Count, width: Count, n_head: Count) -> None:
        """What a shape is."""

    check_arguments(where, shape, of_standard, set())
    if shape["width"] % shape["n_head"]:
        raise InputError(
            f"{where}: width: expected a multiple of n_head ({shape['n_head']}), found {shape['width']}; change one"
        )
    return dict(shape)
