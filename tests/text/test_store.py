import json
import re

import numpy as np
import pytest

from krakenlm.errors import InputError
from krakenlm.text.store import SPLITS, TokenStore
from krakenlm.text.tokenizer import load_tokenizer, train_tokenizer
from krakenlm.text.tokenizing import tokenize


@pytest.fixture
def tokens(corpus, tmp_path):
    """A tokens folder made from `corpus`."""
    train_tokenizer(corpus, 300, tmp_path / "tokenizer.json")
    tokenize(corpus, tmp_path / "tokenizer.json", tmp_path / "tokens")
    return tmp_path / "tokens"


def test_a_split_is_its_documents_with_the_end_token_after_each(tokens, tmp_path, texts):
    store, tokenizer = TokenStore(tokens), load_tokenizer(tmp_path / "tokenizer.json")
    end = store.manifest["end_token"]
    for split, written in texts.items():
        ids = store.tokens(split)
        cuts = np.flatnonzero(ids == end)
        assert len(cuts) == len(written)
        assert cuts[-1] == len(ids) - 1
        documents = np.split(ids, cuts + 1)[:-1]
        assert [tokenizer.decode(document[:-1].tolist()) for document in documents] == written


def test_the_manifest_counts_what_is_there(tokens, texts):
    manifest = TokenStore(tokens).manifest
    assert (manifest["dtype"], manifest["vocabulary"], manifest["vocab_size"]) == ("uint16", 300, 320)
    assert re.fullmatch("[0-9a-f]{64}", manifest["tokenizer"])
    assert manifest["data"] == "cats"
    for split, written in texts.items():
        entry = manifest["splits"][split]
        assert entry["documents"] == len(written)
        assert entry["nats"] == 2.5 * len(written)
        assert entry["bytes"] == sum(len(text.encode()) for text in written)
        assert entry["tokens"] * 2 == (tokens / f"{split}.bin").stat().st_size


def test_ids_beyond_two_bytes_take_four(corpus, tokens, tmp_path):
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"filler{i}": i for i in range(300, 70000)}
    (tmp_path / "large.json").write_text(json.dumps(content))
    tokenize(corpus, tmp_path / "large.json", tmp_path / "wide")
    wide = TokenStore(tmp_path / "wide")
    assert (wide.manifest["dtype"], wide.manifest["vocab_size"]) == ("uint32", 70016)
    assert np.array_equal(wide.tokens("val"), TokenStore(tokens).tokens("val"))


def test_a_truncated_or_missing_file_is_refused_at_once(tokens):
    store = TokenStore(tokens)
    whole = (tokens / "val.bin").read_bytes()
    (tokens / "val.bin").write_bytes(whole[:-2])
    with pytest.raises(InputError, match=rf"val\.bin: expected {len(whole)} bytes .* found {len(whole) - 2} bytes"):
        store.tokens("val")
    (tokens / "val.bin").unlink()
    with pytest.raises(InputError, match="found no file"):
        store.tokens("val")


@pytest.mark.parametrize("split", SPLITS)
def test_whoever_reads_a_split_of_which_a_token_has_changed_is_told_by_its_checksum(tokens, split):
    for each in SPLITS:
        TokenStore(tokens).tokens(each)
    content = bytearray((tokens / f"{split}.bin").read_bytes())
    content[7] ^= 1
    (tokens / f"{split}.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"{split}\.bin: .* checksum"):
        TokenStore(tokens).tokens(split)


def test_a_folder_without_a_manifest_and_one_with_another_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json"):
        TokenStore(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="expected a manifest of tokens"):
        TokenStore(tmp_path)
