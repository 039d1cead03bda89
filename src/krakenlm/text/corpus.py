"""A corpus folder from one of three sources: the embedded stories, the user's files, a data set of the hub.

The hub is read through `datasets`, which runs no code of a data set's repository.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from krakenlm.config import data_label
from krakenlm.errors import InputError
from krakenlm.files import write_json, writing
from krakenlm.text import readers
from krakenlm.text.documents import SPLITS


def write(out_dir: str | Path, settings: Mapping) -> dict:
    """Write train.jsonl, val.jsonl and, last, corpus.json.

    Args:
        out_dir: the corpus folder.
        settings: the keys of `text` that determine the corpus (krakenlm.config.text_settings).

    Returns:
        corpus.json's content: source, data (label for tables), and per split documents, words (between blanks),
        bytes (UTF-8) and nats (of the generator, null for text that nobody generated), and the settings.

    Raises:
        InputError: a file or data set is missing, empty or not what its name says; naming file and place.
    """
    check_settings(settings)
    train, validation = SOURCES[settings["source"]](settings)
    counts = {}
    for split, documents in zip(SPLITS, (train, validation), strict=True):
        with writing(Path(out_dir) / f"{split}.jsonl") as temporary:
            counts[split] = write_documents(temporary, documents)
        if not counts[split]["documents"]:
            raise InputError(
                f"text: expected at least one document for {split}.jsonl, found none that is not blank; give more text"
            )
    summary = {
        "source": settings["source"],
        "data": data_label(settings),
        **{key: {split: counts[split][key] for split in SPLITS} for key in ("documents", "words", "bytes", "nats")},
        "settings": dict(settings),
    }
    if settings["source"] != "embedded":
        summary["nats"] = None
    write_json(Path(out_dir) / "corpus.json", summary)
    return summary


def check_settings(settings: Mapping) -> None:
    """Refuse an unknown source and settings that lack a key of their source."""
    source = settings.get("source")
    if source not in SOURCES:
        raise InputError(f"text.source: expected one of {', '.join(SOURCES)}, found {source!r}; choose one")
    for key in ("seed", "validation_share", *KEYS[source]):
        if key not in settings:
            raise InputError(f"text.{key}: expected a value for text.source {source!r}, found none; set it")


def write_documents(path: Path, documents: Iterable[dict]) -> dict:
    """Write documents, one JSON object a line, blank ones left out; returns their counts."""
    counts = {"documents": 0, "words": 0, "bytes": 0, "nats": 0.0}
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            text = document["text"]
            if not text.strip():
                continue
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
            counts["documents"] += 1
            counts["words"] += len(text.split())
            counts["bytes"] += len(text.encode("utf-8"))
            counts["nats"] += document.get("nats", 0.0)
    return counts | {"nats": round(counts["nats"], 6)}


def embedded(settings: Mapping) -> tuple[list[dict], list[dict]]:
    """The embedded stories. They are drawn independently, so the last ones are as good a sample as any."""
    from krakenlm.text.embedded import documents

    drawn = list(documents(settings["words"], settings["seed"]))
    held_out = min(len(drawn) - 1, max(1, round(settings["validation_share"] * len(drawn))))
    if held_out < 1:
        raise InputError(
            f"text.words: expected enough for two documents, found {settings['words']}; raise it (600000 is tiny's)"
        )
    return drawn[:-held_out], drawn[-held_out:]


def files(settings: Mapping) -> tuple[Iterator[dict], Iterator[dict]]:
    """The user's files, in their order, then split by the seed."""
    import datasets

    column, document = settings["column"], settings["document"]
    pieces = [piece for name in settings["files"] for piece in readers.cut(name, document)]
    texts = [text for piece in pieces for text in readers.read(piece, column, document)]
    if len(texts) < 2:
        raise InputError(
            f"text.files: expected at least two documents, one of them to hold out, found {len(texts)}; "
            "give more text or another text.document"
        )
    return split_documents(datasets.Dataset.from_dict({"text": texts}), "text", settings, "text.files")


def hub(settings: Mapping) -> tuple[Iterator[dict], Iterator[dict]]:
    """A data set of the hub: its `train` split, split as nanoGPT and the paper's authors do."""
    import datasets

    name, column = settings["name"], settings["column"]
    try:
        with quiet_datasets():
            splits = datasets.load_dataset(name, revision=settings["revision"])
    except Exception as error:  # a wrong name, no network, a repository without data: many kinds of exception
        raise InputError(
            f"text.name: expected a data set of the hub, could not read {name!r} at {settings['revision']!r} "
            f"({one_line(error)}); check name, revision and network"
        ) from None
    if "train" not in splits:
        raise InputError(
            f"text.name: expected a data set with a split train, found {', '.join(splits)} in {name!r}; use another"
        )
    check_column(splits["train"], column, name)
    return split_documents(splits["train"], column, settings, "text.name")


def split_documents(dataset, column: str, settings: Mapping, key: str) -> tuple[Iterator[dict], Iterator[dict]]:
    """Documents of a `datasets.Dataset` for training and for validation."""
    try:
        # nanoGPT's call: the same share and seed give the same documents of OpenWebText.
        splits = dataset.train_test_split(test_size=settings["validation_share"], seed=settings["seed"], shuffle=True)
    except ValueError as error:
        raise InputError(
            f"{key}: expected enough documents to hold out {settings['validation_share']} of them, found "
            f"{len(dataset)} ({one_line(error)}); give more text or another text.validation_share"
        ) from None
    return documents_of(splits["train"], column), documents_of(splits["test"], column)


def documents_of(dataset, column: str) -> Iterator[dict]:
    for batch in dataset.select_columns([column]).iter(batch_size=1000):
        for text in batch[column]:
            yield {"text": text or ""}


def check_column(dataset, column: str, name: str) -> None:
    """Refuse a data set without the column, or with something else than text in it."""
    if column not in dataset.column_names:
        raise InputError(
            f"text.column: expected one of {', '.join(dataset.column_names)} ({name}), found {column!r}; set it"
        )
    dtype = getattr(dataset.features[column], "dtype", "a structure")
    if dtype not in ("string", "large_string"):
        raise InputError(f"text.column: expected text in {column!r} of {name}, found {dtype}; choose another column")


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars and no logged tracebacks: a stage's output is a log, and an error is one line."""
    import datasets

    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:160] or type(error).__name__


SOURCES = {"embedded": embedded, "files": files, "hub": hub}
KEYS = {"embedded": ("words",), "files": ("files", "column", "document"), "hub": ("name", "revision", "column")}
