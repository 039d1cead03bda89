from types import SimpleNamespace

import pytest

from krakenlm.errors import InputError
from krakenlm.text.tokenizer import END_OF_TEXT, fetch_tokenizer, load_tokenizer, train_tokenizer


def test_training_twice_gives_the_same_file(corpus, tmp_path):
    for name in ("a", "b"):
        train_tokenizer(corpus, 300, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_text_survives_the_way_to_ids_and_back(corpus, tmp_path):
    train_tokenizer(corpus, 300, tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    for text in ("the cat", " two  blanks \n\n", "日本 \U0001f419 \x00", f"not the end: {END_OF_TEXT}"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_vocabulary_is_as_large_as_asked_for_and_frequent_words_are_single_tokens(corpus, tmp_path):
    train_tokenizer(corpus, 300, tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.get_vocab_size() == 300
    assert len(tokenizer.encode(" the mat").ids) == 2


def test_a_vocabulary_without_room_for_the_bytes_is_refused(corpus, tmp_path):
    with pytest.raises(InputError, match=r"text\.vocabulary: expected at least 257"):
        train_tokenizer(corpus, 256, tmp_path / "tokenizer.json")


def test_a_missing_or_damaged_tokenizer_is_refused_in_one_line(tmp_path):
    damaged = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="found no such file"):
        load_tokenizer(damaged)
    damaged.write_text('{"model": {}}')
    with pytest.raises(InputError, match="damaged") as refusal:
        load_tokenizer(damaged)
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="endoftext"):
        load_tokenizer(tmp_path / "tokenizer.json")


def from_the_hub(monkeypatch, fetch):
    monkeypatch.setattr("krakenlm.text.tokenizer.Tokenizer", SimpleNamespace(from_pretrained=fetch))


def test_a_published_tokenizer_is_kept_as_it_is(corpus, tmp_path, monkeypatch):
    train_tokenizer(corpus, 300, tmp_path / "published.json")
    published = load_tokenizer(tmp_path / "published.json")
    from_the_hub(monkeypatch, {"someone/tokens": published}.__getitem__)
    fetch_tokenizer("someone/tokens", tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "published.json").read_bytes()


def test_a_published_tokenizer_that_cannot_be_had_is_refused_in_one_line(tmp_path, monkeypatch):
    def fetch(name):
        raise Exception(f"no\nroute to {name}")

    from_the_hub(monkeypatch, fetch)
    with pytest.raises(InputError, match=r"text\.tokenizer: .*'nobody/nothing' \(no route to nobody/nothing\)"):
        fetch_tokenizer("nobody/nothing", tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
