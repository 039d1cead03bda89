"""A corpus folder: which documents there are, where they stand, and which are held out.

The text of files stays where it is: the folder has an index of the documents (a checksum and a size each) and their
order. Only the embedded stories, which are in no file yet, are written into it.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from krakenlm.config import data_label, expand
from krakenlm.errors import InputError
from krakenlm.files import write_json, writing
from krakenlm.machine import die_with
from krakenlm.progress import Progress
from krakenlm.text import readers
from krakenlm.text.documents import RECORD, read_index
from krakenlm.text.duplicates import repeated

ROWS = 1 << 20  # of the index, handled at once


@dataclass
class Found:
    """What a source has found: files, and how to read them."""

    files: list[Path]
    held_out: list[Path] = field(default_factory=list)  # files of validation documents alone; none: split by share
    column: str = "text"
    document: str = "line"
    nats: dict[str, float] | None = None  # per split, of the generator
    commit: str | None = None  # of the hub's data set


def write(out_dir: str | Path, settings: Mapping, shards: int = 1, processes: int = 1) -> dict:
    """Write index.bin, order.npy and, last, corpus.json for the documents of `settings["source"]`.

    Args:
        out_dir: the corpus folder.
        settings: the keys of `text` that determine the corpus (krakenlm.config.text_settings).
        shards: how many parts the documents are tokenized in; the tokens do not depend on it.
        processes: how many processes read at once.

    Returns:
        corpus.json's content, see `describe`.

    Raises:
        InputError: a file or data set is missing, empty or not what its name says; naming file and place.
    """
    check_settings(settings)
    if settings["source"] == "bin":
        return describe_tokens(Path(out_dir), settings)
    found = SOURCES[settings["source"]](Path(out_dir), settings)
    return describe(Path(out_dir), found, settings, shards, processes)


def describe(out_dir: Path, found: Found, settings: Mapping, shards: int = 1, processes: int = 1) -> dict:
    """Read all documents once and write what later stages need to know of them.

    Returns:
        corpus.json's content: source, data (label for tables), documents per split, bytes (of all text in UTF-8),
        duplicates (documents whose text stood in an earlier one), nats per split and commit (null where there are
        none), the settings, and the pieces of files with each one's documents and shard.
    """
    reading = {"column": found.column, "document": found.document}
    held_out = cut_all(found.held_out, found.document)
    pieces = [*cut_all(found.files, found.document), *held_out]
    with writing(out_dir / "index.bin") as temporary:
        counts, sizes = write_index(temporary, pieces, reading, processes)
    duplicates = repeated(read_index(out_dir / "index.bin")["hash"])
    first_held_out = sum(counts[: len(pieces) - len(held_out)]) if held_out else None
    with writing(out_dir / "order.npy") as temporary:
        documents = write_order(temporary, duplicates, first_held_out, settings)
    summary = {
        "source": settings["source"],
        "data": data_label(settings),
        "documents": documents,
        "bytes": sum(sizes),
        "duplicates": int(duplicates.sum()),
        "nats": found.nats,
        "commit": found.commit,
        "settings": dict(settings),
        "reading": reading,
        "shards": shards,
        "pieces": [
            asdict(piece) | {"documents": count, "shard": shard}
            for piece, count, shard in zip(pieces, counts, share_out(sizes, shards), strict=True)
        ],
    }
    write_json(out_dir / "corpus.json", summary)
    return summary


def describe_tokens(out_dir: Path, settings: Mapping) -> dict:
    """corpus.json of a corpus that there is only as tokens; the tokens stage looks into these."""
    summary = {
        "source": settings["source"],
        "data": data_label(settings),
        "documents": None,
        "duplicates": None,
        "settings": dict(settings),
        "shards": 0,
        "pieces": [],
    }
    write_json(out_dir / "corpus.json", summary)
    return summary


def check_settings(settings: Mapping) -> None:
    """Refuse an unknown source and settings that lack a key of their source."""
    source = settings.get("source")
    if source not in KEYS:
        raise InputError(f"text.source: expected one of {', '.join(KEYS)}, found {source!r}; choose one")
    for key in ("seed", "validation_share", *KEYS[source]):
        if key not in settings:
            raise InputError(f"text.{key}: expected a value for text.source {source!r}, found none; set it")


def cut_all(paths: Iterable[Path], document: str) -> list[readers.Piece]:
    # Absolute, so that a later stage finds them from wherever it runs.
    return [piece for path in paths for piece in readers.cut(path.absolute(), document)]


def write_index(
    path: Path, pieces: list[readers.Piece], reading: Mapping, processes: int
) -> tuple[list[int], list[int]]:
    """Read every document once; write its record (documents.RECORD). Returns documents and bytes of each piece."""
    counts, sizes = [], []
    progress = Progress("corpus", len(pieces), "pieces")
    with open(path, "wb") as file, mapping(min(processes, len(pieces))) as apply:
        for records in apply(scan, pieces, itertools.repeat(reading)):
            file.write(records)
            records = np.frombuffer(records, RECORD)
            counts.append(len(records))
            sizes.append(int(records["bytes"].sum()))
            progress.add(1)
    return counts, sizes


def scan(piece: readers.Piece, reading: Mapping) -> bytes:
    """The records of a piece's documents, one behind the other."""
    records = []
    for text in readers.read(piece, **reading):
        content = text.encode("utf-8")
        records.append(blake2b(content, digest_size=16).digest() + len(content).to_bytes(8, "little"))
    return b"".join(records)


@contextlib.contextmanager
def mapping(processes: int) -> Iterator[Callable]:
    """`map`, or one whose calls run in `processes` processes; results come in the order of the arguments.

    These processes end with this one, also where it is killed.

    Raises:
        InputError: one of the processes was killed.
    """
    if processes < 2:
        yield map
        return
    # Forked children would inherit the threads' locks of whatever this process has imported.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, spawn, die_with, (os.getpid(),)) as pool:
            yield pool.map
    except BrokenProcessPool:
        raise InputError(
            f"corpus: expected {processes} processes to read to the end, found that one ended before: by the error "
            "above, if there is one, else killed, as the system does where memory runs out; lower --processes or give "
            "more memory, and run again"
        ) from None


def write_order(path: Path, duplicates: np.ndarray, first_held_out: int | None, settings: Mapping) -> dict[str, int]:
    """Write the documents' order, validation first (documents.Corpus.order); returns the documents of each split.

    The split is that of `datasets`' train_test_split(test_size=validation_share, seed=seed, shuffle=True): with the
    share and the seed of nanoGPT, which the paper's authors took over, the same documents of OpenWebText in the same
    order. The order is made in a mapped file: 8 bytes per document, not of memory.
    """
    left_out = duplicates if settings.get("deduplicate") else np.zeros_like(duplicates)
    kept = int((~left_out).sum())
    held_out = count_held_out(kept, settings) if first_held_out is None else int((~left_out[first_held_out:]).sum())
    # An array that NumPy shuffles by its fast way, which is the one that permutation() takes, has no subclass.
    order = np.asarray(np.lib.format.open_memmap(path, "w+", np.int64, (kept,)))
    filled = 0
    for start in range(0, len(left_out), ROWS):
        places = start + np.flatnonzero(~left_out[start : start + ROWS])
        order[filled : filled + len(places)] = places
        filled += len(places)
    if first_held_out is None:
        np.random.default_rng(settings["seed"]).shuffle(order)
    else:
        order[:] = np.roll(order, held_out)
    return {"train": kept - held_out, "val": held_out}


def count_held_out(documents: int, settings: Mapping) -> int:
    """How many documents to hold out, at least one and not all.

    Raises:
        InputError: there are too few documents.
    """
    share = settings["validation_share"]
    key = {"hub": "text.name"}.get(settings["source"], f"text.{settings['source']}")
    if documents < 2:
        raise InputError(
            f"{key}: expected at least two documents, one of them to hold out, found {documents}; give more text or "
            "another text.document"
        )
    held_out = math.ceil(share * documents)
    if held_out >= documents:
        raise InputError(
            f"{key}: expected enough documents to hold out {share} of them, found {documents}; give more text or "
            "another text.validation_share"
        )
    return held_out


def share_out(sizes: list[int], shards: int) -> list[int]:
    """The shard of each piece: pieces stay in their order, and shards have about equally many bytes."""
    total, before, chosen = sum(sizes), 0, []
    for size in sizes:
        chosen.append(min(shards - 1, shards * (2 * before + size) // (2 * total)) if total else 0)
        before += size
    return chosen


def embedded(out_dir: Path, settings: Mapping) -> Found:
    """The embedded stories. They are drawn independently, so the last ones are as good a sample as any."""
    from krakenlm.text.embedded import documents

    drawn = list(documents(settings["words"], settings["seed"]))
    held_out = min(len(drawn) - 1, max(1, round(settings["validation_share"] * len(drawn))))
    if held_out < 1:
        raise InputError(
            f"text.words: expected enough for two documents, found {settings['words']}; raise it (600000 is tiny's)"
        )
    nats = {}
    for split, part in {"train": drawn[:-held_out], "val": drawn[-held_out:]}.items():
        with writing(out_dir / f"{split}.jsonl") as temporary:
            lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in part)
            temporary.write_text("".join(lines), encoding="utf-8")
        nats[split] = round(sum(document["nats"] for document in part), 6)
    return Found([out_dir / "train.jsonl"], held_out=[out_dir / "val.jsonl"], nats=nats)


def files(out_dir: Path, settings: Mapping) -> Found:
    """The user's files, in their order."""
    return Found(expand(settings["files"]), column=settings["column"], document=settings["document"])


def hub(out_dir: Path, settings: Mapping) -> Found:
    """A data set of the hub: its `train` split, fetched into the hub's cache."""
    from krakenlm.text.hub import fetch

    commit, paths = fetch(settings["name"], settings["revision"], settings.get("subset"))
    return Found(paths, column=settings["column"], commit=commit)


SOURCES = {"embedded": embedded, "files": files, "hub": hub}
KEYS = {
    "embedded": ("words",),
    "files": ("files", "column", "document"),
    "hub": ("name", "revision", "column"),
    "bin": ("folder", "tokenizer"),
}
