"""Documents become token ids: shard by shard, each on its own, then put together in the corpus's order.

A shard is `<number>.bin` (its documents' ids, an end token after each), `<number>.ends` (where each ends) and, last,
`<number>.json` with counts and checksums: without the last the shard does not exist.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from krakenlm.config import fingerprint
from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json, writing
from krakenlm.progress import Progress
from krakenlm.text.documents import Corpus
from krakenlm.text.lengths import Lengths
from krakenlm.text.store import LITTLE_ENDIAN, SPLITS, checksum
from krakenlm.text.tokenizer import Encoder, padded, tokenizer_checksum

# Documents and characters that are encoded at once.
BATCH_DOCUMENTS, BATCH_CHARACTERS = 2048, 4_000_000
# Ids of a file made elsewhere that are checked at once.
CHECKED_AT_ONCE = 1 << 24
# nanoGPT's published counts, for the split and tokenizer of its data/openwebtext.
PUBLISHED_SETTINGS = {"source": "hub", "name": "Skylion007/openwebtext", "seed": 2357, "validation_share": 0.0005}
PUBLISHED_TOKENS = {"train": 9_035_582_198, "val": 4_434_897}
# Documents that are put in their place at once.
PLACED_AT_ONCE = 1 << 14


def tokenize(
    corpus_dir: str | Path, tokenizer_json: str | Path, out_dir: str | Path, threads: int | None = None
) -> None:
    """Write both splits of a corpus as token ids: train.bin, val.bin, and last manifest.json.

    Shards that are there already (`tokenize_shard`, in other processes or on other machines) are taken; what is missing
    is made here. A file is little-endian ids without a header, an end token after each document. The manifest holds
    dtype, vocab_size (padded), vocabulary (true), tokenizer (its checksum), end_token, data, duplicates (documents that
    stood in the corpus before, as a share), and per split tokens, documents, bytes (of the text in UTF-8), nats (of the
    generator, null where unknown), lengths (lengths.Lengths.summary) and sha256.

    Raises:
        InputError: corpus or tokenizer are missing or damaged, or a shard or file is not what its checksum says.
    """
    corpus = Corpus(corpus_dir)
    if corpus.summary["source"] == "bin":
        return adopt(corpus, Encoder(tokenizer_json), Path(out_dir))
    shards = Path(out_dir) / "shards"
    for shard in range(corpus.shards):
        if not is_made(corpus, shard, tokenizer_json, shards):
            tokenize_shard(corpus_dir, tokenizer_json, shards, shard, threads)
    manifest = describe(corpus, Encoder(tokenizer_json))
    for split in SPLITS:
        path = Path(out_dir) / f"{split}.bin"
        with writing(path) as temporary, Shards(shards, corpus.shards, manifest["dtype"]) as parts:
            placed = place(parts, corpus.order(split), temporary)
        # What was computed and what the disk now holds are two things.
        if checksum(path) != placed["sha256"]:
            raise InputError(f"{path}: expected to read what was written, found something else; check the disk")
        nats = (corpus.summary["nats"] or {}).get(split)
        manifest["splits"][split] = placed | {"bytes": corpus.bytes(split), "nats": nats}
    write_json(Path(out_dir) / "manifest.json", manifest)
    shutil.rmtree(shards)


def describe(corpus: Corpus, encoder: Encoder) -> dict:
    """The manifest before its splits are known."""
    documents = sum(entry["documents"] for entry in corpus.summary["pieces"])
    return {
        "dtype": encoder.dtype,
        "vocab_size": padded(encoder.vocabulary),
        "vocabulary": encoder.vocabulary,
        "tokenizer": tokenizer_checksum(encoder.tokenizer),
        "end_token": encoder.end,
        "data": corpus.summary["data"],
        "duplicates": corpus.summary["duplicates"] / documents if documents else None,
        "published_tokens": published_tokens(corpus.summary["settings"]),
        "splits": {},
    }


def published_tokens(settings: Mapping) -> dict | None:
    """Tokens of each split as nanoGPT publishes them, where these settings are its own."""
    same = not settings.get("deduplicate") and all(
        settings.get(key) == value for key, value in PUBLISHED_SETTINGS.items()
    )
    return PUBLISHED_TOKENS if same and settings.get("tokenizer") in ("gpt2", "openai-community/gpt2") else None


def adopt(corpus: Corpus, encoder: Encoder, out_dir: Path) -> None:
    """Take train.bin and val.bin as they are, by a link to each, once every id in them is known to be a token.

    Raises:
        InputError: a file is missing, cut off, or holds what is no token; or the tokenizer is not byte-level.
    """
    manifest, sizes = describe(corpus, encoder), token_bytes(encoder)
    for split in SPLITS:
        path = Path(corpus.summary["settings"]["folder"], f"{split}.bin").absolute()
        manifest["splits"][split] = read_through(path, LITTLE_ENDIAN[manifest["dtype"]], encoder, sizes) | {
            "nats": None
        }
        with linking(out_dir / f"{split}.bin") as link:
            link.symlink_to(path)
    write_json(out_dir / "manifest.json", manifest)


def token_bytes(encoder: Encoder) -> np.ndarray:
    """Bytes of text that each token stands for, none for the end token; the tokenizer's characters stand for bytes."""
    if not encoder.parted:
        raise InputError("text.tokenizer: expected GPT-2's kind of tokenizer for text.source bin, found another")
    sizes = np.zeros(encoder.vocabulary, np.int64)
    for token, number in encoder.tokenizer.get_vocab().items():
        sizes[number] = 0 if number == encoder.end else len(token)
    return sizes


def read_through(path: Path, dtype: np.dtype, encoder: Encoder, sizes: np.ndarray) -> dict:
    """A token file's entry of the manifest."""
    if not path.is_file() or path.stat().st_size == 0 or path.stat().st_size % dtype.itemsize:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
        raise InputError(f"{path}: expected {dtype.name} tokens, found {found}; correct text.folder")
    counts, lengths, tokens, open_length, documents = 0, Lengths(), 0, 0, 0
    for some_P in blocks(path, dtype):
        if some_P.max() >= encoder.vocabulary:
            place = int(np.argmax(some_P >= encoder.vocabulary))
            raise InputError(
                f"{path}: expected ids below {encoder.vocabulary}, the tokenizer's size, found {some_P[place]} at "
                f"{tokens + place}; set text.tokenizer to the one that made the file"
            )
        tokens += len(some_P)
        counts = counts + np.bincount(some_P, minlength=encoder.vocabulary)
        ends = np.flatnonzero(some_P == encoder.end)
        length_U = np.diff(ends, prepend=-1 - open_length)
        open_length = len(some_P) - 1 - ends[-1] if len(ends) else open_length + len(some_P)
        lengths.add(length_U)
        documents += len(ends)
    return {
        "tokens": tokens,
        "documents": documents,
        "lengths": lengths.summary(),
        "sha256": checksum(path),
        "bytes": int((counts * sizes).sum()),
    }


def blocks(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids of a file, CHECKED_AT_ONCE at a time. Read and not mapped: a process keeps mapped pages as its memory."""
    with open(path, "rb") as file:
        while len(some_P := np.fromfile(file, dtype, CHECKED_AT_ONCE)):
            yield some_P


@contextlib.contextmanager
def linking(path: Path) -> Iterator[Path]:
    """Yield the name of a link to make; it then takes `path`'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    yield temporary
    os.replace(temporary, path)


def identity(corpus: Corpus, shard: int, tokenizer_json: str | Path) -> str:
    """Hash of what determines a shard: its pieces of files, how they are read, the tokenizer."""
    pieces = [entry for entry in corpus.summary["pieces"] if entry["shard"] == shard]
    return fingerprint([pieces, corpus.summary["reading"], checksum(tokenizer_json)], 64)


def is_made(corpus: Corpus, shard: int, tokenizer_json: str | Path, directory: Path) -> bool:
    """Whether a shard is there, whole, and made of this corpus by this tokenizer."""
    description, ids, ends = (directory / f"{shard:05d}.{suffix}" for suffix in ("json", "bin", "ends"))
    if not (description.is_file() and ids.is_file() and ends.is_file()):
        return False
    try:
        found = read_json(description)
    except InputError:  # damaged, so it is made again as any broken part of a shard
        return False
    expected = {"identity": identity(corpus, shard, tokenizer_json), "ids": checksum(ids), "ends": checksum(ends)}
    return all(found.get(key) == value for key, value in expected.items())


def tokenize_shard(
    corpus_dir: str | Path, tokenizer_json: str | Path, directory: str | Path, shard: int, threads: int | None = None
) -> None:
    """Write one shard of a corpus, its documents in the order of the index.

    Raises:
        InputError: the corpus has no such shard, a file has changed or is damaged, or the disk is full.
    """
    corpus, encoder, directory = Corpus(corpus_dir), Encoder(tokenizer_json, threads), Path(directory)
    if not 0 <= shard < corpus.shards:
        raise InputError(f"shard: expected 0 to {corpus.shards - 1}, found {shard}; choose one")
    tokens = documents = 0
    progress = Progress(f"tokens, shard {shard}", corpus.count(shard), "documents")
    ids, ends = directory / f"{shard:05d}.bin", directory / f"{shard:05d}.ends"
    with writing(ids) as ids_part, writing(ends) as ends_part:
        with open(ids_part, "wb") as ids_file, open(ends_part, "wb") as ends_file:
            for texts in batches(corpus.documents(shard)):
                ids_P, length_U = encoder.encode(texts)
                ids_file.write(ids_P.tobytes())
                ends_file.write((tokens + np.cumsum(length_U)).astype("<u8").tobytes())
                tokens += len(ids_P)
                documents += len(texts)
                progress.add(len(texts))
        if documents != corpus.count(shard):
            raise InputError(
                f"{corpus_dir}: expected {corpus.count(shard)} documents in shard {shard}, found {documents}; the "
                "files have changed, run the corpus stage again"
            )
    description = {"identity": identity(corpus, shard, tokenizer_json), "ids": checksum(ids), "ends": checksum(ends)}
    write_json(directory / f"{shard:05d}.json", description | {"tokens": tokens, "documents": documents})


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents, in order, as many at once as are encoded at once."""
    held, characters = [], 0
    for text in documents:
        if held and (len(held) == BATCH_DOCUMENTS or characters + len(text) > BATCH_CHARACTERS):
            yield held
            held, characters = [], 0
        held.append(text)
        characters += len(text)
    if held:
        yield held


class Shards(contextlib.ExitStack):
    """All shards of a folder as one row of documents.

    Their ids are read, not mapped: a process keeps mapped pages as its memory, and in the end would have all of them.
    """

    def __init__(self, directory: Path, count: int, dtype: str) -> None:
        super().__init__()
        self.dtype = LITTLE_ENDIAN[dtype]
        names = [directory / f"{shard:05d}" for shard in range(count)]
        self.ids = [self.enter_context(open(f"{name}.bin", "rb")) for name in names]  # noqa: SIM115 - they stay open
        self.ends = [np.fromfile(f"{name}.ends", "<u8") for name in names]
        self.first = np.concatenate([[0], np.cumsum([len(ends) for ends in self.ends])])

    def documents(self, places: np.ndarray) -> Iterator[bytes]:
        """The ids of the documents at `places`, as they stand in their shards.

        Raises:
            InputError: a shard has become shorter.
        """
        shards = np.searchsorted(self.first, places, side="right") - 1
        starts, stops = np.zeros(len(places), np.int64), np.empty(len(places), np.int64)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            local = places[chosen] - self.first[shard]
            stops[chosen] = self.ends[shard][local]
            later = local > 0
            starts[chosen[later]] = self.ends[shard][local[later] - 1]
        sizes = self.dtype.itemsize * (stops - starts)
        starts *= self.dtype.itemsize
        for shard, start, size in zip(shards.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            file = self.ids[shard]
            file.seek(start)
            content = file.read(size)
            if len(content) != size:
                raise InputError(
                    f"{file.name}: expected {size} bytes from byte {start}, found {len(content)}; run the stage again"
                )
            yield content


def place(shards: Shards, order: np.ndarray, path: Path) -> dict:
    """Write the documents named in `order`; returns their tokens, documents, lengths and checksum."""
    progress = Progress("tokens, put in order", len(order), "documents")
    tokens, lengths, digest = 0, Lengths(), hashlib.sha256()
    with open(path, "wb", buffering=1 << 20) as file:
        for start in range(0, len(order), PLACED_AT_ONCE):
            length_U = []
            for content in shards.documents(order[start : start + PLACED_AT_ONCE]):
                file.write(content)
                digest.update(content)
                length_U.append(len(content) // shards.dtype.itemsize)
            lengths.add(np.array(length_U))
            tokens += sum(length_U)
            progress.add(len(length_U))
    return {"tokens": tokens, "documents": len(order), "lengths": lengths.summary(), "sha256": digest.hexdigest()}
