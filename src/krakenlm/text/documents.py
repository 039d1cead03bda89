"""The two files of a corpus folder, as any later stage reads them."""

import json
from collections.abc import Iterator
from pathlib import Path

from krakenlm.errors import InputError

SPLITS = ("train", "val")


def read_documents(corpus_dir: str | Path, split: str) -> Iterator[dict]:
    """The documents of `split` ("train" or "val") in order, each {"text": str} and, where known, "nats": float.

    Raises:
        InputError: the split is missing or one of its lines is not such an object.
    """
    path = Path(corpus_dir) / f"{split}.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: expected a corpus, found no such file; run the corpus stage")
    # Only "\n" ends a line: a text may hold other separators that str.splitlines would cut at.
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                document = json.loads(line)
                document["text"].encode("utf-8")
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(
                    f'{path}: expected {{"text": ...}} in line {number}, found {line[:40]!r}; make the corpus again'
                ) from None
            yield document
