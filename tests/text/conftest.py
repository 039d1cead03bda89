import json

import pytest

from krakenlm.text.corpus import Found, describe

TEXTS = {
    "train": [f"the cat number {i} sat on the mat\nand said naïve things" for i in range(40)],
    "val": ["the mat sat on the cat", "a\u2028separator, and <|endoftext|> spelled out"],
}


@pytest.fixture
def texts():
    return TEXTS


@pytest.fixture
def corpus(tmp_path):
    """A corpus folder with `texts`, each of 2.5 nats."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, documents in TEXTS.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    nats = {split: 2.5 * len(documents) for split, documents in TEXTS.items()}
    found = Found([folder / "train.jsonl"], held_out=[folder / "val.jsonl"], nats=nats)
    describe(folder, found, {"source": "files", "files": ["cats.txt"]})
    return folder
