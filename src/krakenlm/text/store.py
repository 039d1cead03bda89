"""Token files: a split's documents as one run of ids on disk, counted and checksummed, mapped into memory."""

import hashlib
from pathlib import Path

import numpy as np

from krakenlm.errors import InputError
from krakenlm.files import read_json

SPLITS = ("train", "val")
LITTLE_ENDIAN = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def checksum(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class TokenStore:
    """A tokens folder: `manifest`, a dictionary (see tokenizing.tokenize), and the splits' ids.

    Raises:
        InputError: there is no manifest or it is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_json(self.directory / "manifest.json")
        self.verified: set[str] = set()  # splits whose content is known to be the manifest's
        if self.manifest.get("dtype") not in LITTLE_ENDIAN or not set(SPLITS) <= set(self.manifest.get("splits", {})):
            raise InputError(
                f"{self.directory / 'manifest.json'}: expected a manifest of tokens, found another file; "
                "run the tokens stage"
            )

    def tokens(self, split: str) -> np.memmap:
        """The ids of `split` ("train" or "val"), one dimension, mapped read-only; read whole once, for their checksum.

        Whoever reads tokens reads them here: seconds a split, against work on what a disk or a copy has spoilt.

        Raises:
            InputError: the file is missing, or its length or content is not what the manifest says.
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
        if split not in self.verified and checksum(path) != entry["sha256"]:
            raise InputError(
                f"{path}: expected the content whose checksum is in manifest.json, found another; "
                "delete it and run the tokens stage again"
            )
        self.verified.add(split)
        return np.memmap(path, dtype=dtype, mode="r")
