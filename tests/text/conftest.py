import json

import pytest

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
        lines = [json.dumps({"text": text, "nats": 2.5}, ensure_ascii=False) + "\n" for text in documents]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "corpus.json").write_text('{"data": "cats (synthetic)"}')
    return folder
