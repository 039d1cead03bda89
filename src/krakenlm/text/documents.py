"""A corpus folder as later stages read it: corpus.json, index.bin, order.npy, and the documents themselves."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from krakenlm.errors import InputError
from krakenlm.files import read_json
from krakenlm.text import readers

# What index.bin holds of each document, little-endian: BLAKE2b of its text in UTF-8 (16 bytes), and that text's length.
RECORD = np.dtype([("hash", "<u8", (2,)), ("bytes", "<u8")])


def read_index(path: str | Path) -> np.ndarray:
    """The records of index.bin, mapped read-only; an empty file has none."""
    return np.memmap(path, RECORD, "r") if Path(path).stat().st_size else np.empty(0, RECORD)


class Corpus:
    """A corpus folder: `summary`, the content of corpus.json, and the documents.

    Raises:
        InputError: there is no corpus or one of its files is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.summary = read_json(self.directory / "corpus.json")
        if "source" not in self.summary or "settings" not in self.summary:
            raise InputError(
                f"{self.directory / 'corpus.json'}: expected the description of a corpus, found another file; "
                "run the corpus stage"
            )

    @property
    def shards(self) -> int:
        """How many parts its documents are tokenized in."""
        return self.summary["shards"]

    def documents(self, shard: int | None = None) -> Iterator[str]:
        """The texts of a shard, or of all, in the order of index.bin.

        Raises:
            InputError: a file has changed since the corpus was made, or has become unreadable.
        """
        for entry in self.summary["pieces"]:
            if shard is not None and entry["shard"] != shard:
                continue
            yield from readers.read(self.piece(entry), **self.summary["reading"])

    def piece(self, entry: Mapping) -> readers.Piece:
        """Where the documents of an entry lie. A cluster or a storage moves and touches the corpus's own files."""
        piece = readers.Piece(**{key: entry[key] for key in ("path", "start", "stop", "size", "changed")})
        own = self.directory / Path(piece.path).name
        if self.summary["source"] != "embedded" or not own.is_file():
            return piece
        return dataclasses.replace(piece, path=str(own), changed=own.stat().st_mtime_ns)

    def count(self, shard: int) -> int:
        """Number of documents of a shard."""
        return sum(entry["documents"] for entry in self.summary["pieces"] if entry["shard"] == shard)

    def order(self, split: str) -> np.ndarray:
        """Places in the index of the documents of `split` ("train" or "val"), in the order of its tokens; mapped."""
        path, held_out = self.directory / "order.npy", self.summary["documents"]["val"]
        try:
            order = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected the order of a corpus, could not read it ({error}); run the corpus stage again"
            ) from None
        return order[:held_out] if split == "val" else order[held_out:]

    def bytes(self, split: str) -> int:
        """Bytes of the split's text in UTF-8, all documents together."""
        sizes, order = read_index(self.directory / "index.bin")["bytes"], self.order(split)
        return sum(int(sizes[order[start : start + (1 << 20)]].sum()) for start in range(0, len(order), 1 << 20))

    def training_documents(self) -> Iterator[str]:
        """The texts of the training split in the order of index.bin."""
        chosen = np.zeros(sum(entry["documents"] for entry in self.summary["pieces"]), bool)
        chosen[self.order("train")] = True
        return (text for text, taken in zip(self.documents(), chosen, strict=True) if taken)
