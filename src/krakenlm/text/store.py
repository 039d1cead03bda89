"""Token files: a split's documents as one run of ids on disk, counted and checksummed, mapped into memory."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json, writing
from krakenlm.text.documents import SPLITS, read_documents
from krakenlm.text.tokenizer import end_token, load_tokenizer

# Models' vocabularies are padded to this: matrix products are fast at such sizes (as in nanoGPT, 50257 -> 50304).
PADDED_TO = 64
BATCH = 2048
LITTLE_ENDIAN = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def tokenize(corpus_dir: str | Path, tokenizer_json: str | Path, out_dir: str | Path) -> None:
    """Write both splits of a corpus as token ids: train.bin, val.bin, and last manifest.json.

    A file is little-endian ids without a header, an end token after each document. The manifest holds dtype,
    vocab_size (padded), vocabulary (true), end_token, data, and per split tokens, documents, bytes (of the text in
    UTF-8), nats (of the generator, null where unknown) and sha256.

    Raises:
        InputError: corpus or tokenizer are missing or damaged, or a split is empty.
    """
    corpus = read_json(Path(corpus_dir) / "corpus.json")
    tokenizer = load_tokenizer(tokenizer_json)
    vocabulary = tokenizer.get_vocab_size()
    manifest = {
        "dtype": "uint16" if vocabulary <= 1 << 16 else "uint32",
        "vocab_size": (vocabulary + PADDED_TO - 1) // PADDED_TO * PADDED_TO,
        "vocabulary": vocabulary,
        "end_token": end_token(tokenizer, str(tokenizer_json)),
        "data": corpus["data"],
        "splits": {},
    }
    for split in SPLITS:
        with writing(Path(out_dir) / f"{split}.bin") as temporary:
            manifest["splits"][split] = write_split(corpus_dir, split, tokenizer, manifest, temporary)
    write_json(Path(out_dir) / "manifest.json", manifest)


def write_split(corpus_dir: str | Path, split: str, tokenizer: Tokenizer, manifest: dict, path: Path) -> dict:
    """Write one split's ids to `path`; returns its entry of the manifest."""
    dtype, end = LITTLE_ENDIAN[manifest["dtype"]], manifest["end_token"]
    counts = {"tokens": 0, "documents": 0, "bytes": 0, "nats": 0.0}
    checksum = hashlib.sha256()
    documents = read_documents(corpus_dir, split)
    with open(path, "wb") as file:
        while batch := list(itertools.islice(documents, BATCH)):
            texts = [document["text"] for document in batch]
            encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids = np.fromiter(itertools.chain.from_iterable([*item.ids, end] for item in encoded), dtype)
            file.write(ids.tobytes())
            checksum.update(ids.tobytes())
            counts["tokens"] += len(ids)
            counts["documents"] += len(batch)
            counts["bytes"] += sum(len(text.encode("utf-8")) for text in texts)
            # One document of unknown probability leaves the sum unknown: NaN stays NaN.
            counts["nats"] += sum(document.get("nats", float("nan")) for document in batch)
    if not counts["documents"]:
        raise InputError(f"{corpus_dir}: expected documents in {split}.jsonl, found none; give more text")
    counts["nats"] = None if counts["nats"] != counts["nats"] else round(counts["nats"], 6)
    return counts | {"sha256": checksum.hexdigest()}


class TokenStore:
    """A tokens folder: `manifest`, a dictionary (see `tokenize`), and the splits' ids.

    Raises:
        InputError: there is no manifest or it is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_json(self.directory / "manifest.json")
        if self.manifest.get("dtype") not in LITTLE_ENDIAN or not set(SPLITS) <= set(self.manifest.get("splits", {})):
            raise InputError(
                f"{self.directory / 'manifest.json'}: expected a manifest of tokens, found another file; "
                "run the tokens stage"
            )

    def tokens(self, split: str) -> np.memmap:
        """The ids of `split` ("train" or "val"), one dimension, mapped read-only.

        Raises:
            InputError: the file is missing or not as long as the manifest says.
        """
        path, entry = self.directory / f"{split}.bin", self.manifest["splits"][split]
        dtype = LITTLE_ENDIAN[self.manifest["dtype"]]
        expected = entry["tokens"] * dtype.itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            raise InputError(
                f"{path}: expected {expected} bytes ({entry['tokens']} tokens), found "
                f"{'no file' if found is None else f'{found} bytes'}; delete it and run the tokens stage again"
            )
        return np.memmap(path, dtype=dtype, mode="r")

    def verify(self) -> None:
        """Read every file and compare its checksum with the manifest's.

        Raises:
            InputError: one differs.
        """
        for split in SPLITS:
            self.tokens(split)
            path = self.directory / f"{split}.bin"
            with open(path, "rb") as file:
                checksum = hashlib.sha256()
                while block := file.read(1 << 24):
                    checksum.update(block)
            if checksum.hexdigest() != self.manifest["splits"][split]["sha256"]:
                raise InputError(
                    f"{path}: expected the content whose checksum is in manifest.json, found another; "
                    "delete it and run the tokens stage again"
                )
