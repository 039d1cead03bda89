"""A corpus folder from one of three sources: the embedded stories, the user's files, a data set of the hub.

Files and the hub are read through `datasets`, which runs no code of a data set's repository.
"""

import codecs
import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from krakenlm.config import data_label
from krakenlm.errors import InputError
from krakenlm.files import write_json, writing
from krakenlm.text.documents import SPLITS

LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
DOCUMENTS = {"line": "line", "paragraph": "paragraph", "file": "document"}


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

    for name in settings["files"]:
        check_file(Path(name))
    with tempfile.TemporaryDirectory() as cache, quiet_datasets():
        parts = [read_file(Path(name), settings, cache) for name in settings["files"]]
        column = datasets.concatenate_datasets(parts)
        # In memory, since the cache goes with this block.
        texts = [text for text in column["text"] if text and text.strip()]
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


def check_file(path: Path) -> None:
    """Refuse a file of unknown kind, a missing or empty one, and text that is not UTF-8."""
    if path.suffix not in LOADERS:
        raise InputError(
            f"{path}: expected one of {', '.join(LOADERS)}, found {path.suffix or 'no suffix'!r}; convert it"
        )
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; correct text.files")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected text, found an empty file; leave it out of text.files")
    if path.suffix != ".parquet":
        check_utf8(path)


def check_utf8(path: Path) -> None:
    """Refuse a file that is not UTF-8, naming the byte and the line, which the loaders' own errors do not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read, lines = 0, 1
    with open(path, "rb") as file:
        while True:
            block = file.read(1 << 20)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = read - kept + error.start
                line = lines + error.object[: error.start].count(b"\n")
                found = "an unfinished character" if not block else f"byte 0x{error.object[error.start]:02x}"
                raise InputError(
                    f"{path}: expected UTF-8, found {found} at byte {offset}, line {line}; convert the file to UTF-8"
                ) from None
            if not block:
                return
            read += len(block)
            lines += block.count(b"\n")


def read_file(path: Path, settings: Mapping, cache: str):
    """One file's documents as a `datasets.Dataset` with the column `text`."""
    import datasets

    options = {"sample_by": DOCUMENTS[settings["document"]]} if path.suffix == ".txt" else {}
    try:
        dataset = datasets.load_dataset(
            LOADERS[path.suffix], data_files=str(path), split="train", cache_dir=cache, **options
        )
    except Exception as error:  # pyarrow's and the loaders' own, by kind of damage
        raise InputError(describe_damage(path, error)) from None
    column = "text" if path.suffix == ".txt" else settings["column"]
    check_column(dataset, column, str(path))
    dataset = dataset.select_columns([column]).rename_columns({column: "text"} if column != "text" else {})
    return dataset.cast_column("text", datasets.Value("string"))


def describe_damage(path: Path, error: Exception) -> str:
    """One line for a file that its loader could not read; for JSON lines the first bad line."""
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    parsed = json.loads(line) if line.strip() else {}
                except ValueError:
                    parsed = None
                if not isinstance(parsed, dict):
                    return f"{path}: expected a JSON object in line {number}, found {line[:40]!r}; correct the line"
    return f"{path}: expected {LOADERS[path.suffix]}, could not read it ({one_line(error)}); correct the file"


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
