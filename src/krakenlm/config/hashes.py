"""Hashes of files and values, from which folders have their names."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from krakenlm.files import read_json, write_json

# Files below this many bytes are hashed anew each time; the hash of a larger one is remembered.
QUICKLY_HASHED = 100_000_000
# Hashes known to this process, by path, size and time of change.
KNOWN_HASHES: dict[str, str] = {}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, as `content_hashes` has it."""
    return content_hashes([path])[0]


def content_hashes(paths: list[Path]) -> list[str]:
    """SHA-256 of each file. Where they are large together, they are remembered under results/ for the next process."""
    status = [path.stat() for path in paths]
    keys = [f"{path.resolve()} {s.st_size} {s.st_mtime_ns}" for path, s in zip(paths, status, strict=True)]
    large, known_path = sum(s.st_size for s in status) >= QUICKLY_HASHED, Path("results/.sha256.json")
    if large and known_path.exists() and not set(keys) <= set(KNOWN_HASHES):
        KNOWN_HASHES.update(read_json(known_path))
    missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in KNOWN_HASHES}
    if missing:
        # hashlib lets other threads run.
        with ThreadPoolExecutor() as pool:
            KNOWN_HASHES.update(zip(missing, pool.map(hash_file, missing.values()), strict=True))
        if large:
            write_json(known_path, KNOWN_HASHES)
    return [KNOWN_HASHES[key] for key in keys]


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object, length: int = 8) -> str:
    """Short hash of a JSON value, for folder names."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
