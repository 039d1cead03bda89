import json
from types import SimpleNamespace

import pytest

from krakenlm.errors import InputError
from krakenlm.text import tokenizer
from krakenlm.text.documents import Corpus
from krakenlm.text.tokenizer import END_OF_TEXT, Encoder, fetch_tokenizer, load_tokenizer, paddings, train_tokenizer


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


def test_any_tokenizer_json_is_taken_from_a_file_or_a_folder(corpus, tmp_path):
    train_tokenizer(corpus, 300, tmp_path / "mine" / "tokenizer.json")
    for path in (tmp_path / "mine", tmp_path / "mine" / "tokenizer.json"):
        fetch_tokenizer(str(path), tmp_path / "tokenizer.json")
        assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "mine" / "tokenizer.json").read_bytes()


def test_a_tokenizer_whose_ids_have_gaps_is_refused(corpus, tmp_path):
    train_tokenizer(corpus, 300, tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 400
    (tmp_path / "gap.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"text\.tokenizer: expected ids from 0 to 300 in .*gap\.json, found 400"):
        fetch_tokenizer(str(tmp_path / "gap.json"), tmp_path / "out.json")


def test_documents_end_with_the_end_token_that_the_vocabulary_has(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json")
    assert encoder.end == 1
    assert encoder.encode(["a"])[0].tolist() == [0, 1]


def test_a_tokenizer_is_trained_on_a_sample_of_a_large_text(corpus, tmp_path, monkeypatch):
    everything = list(tokenizer.training_sample(Corpus(corpus)))
    monkeypatch.setattr(tokenizer, "SAMPLE_BYTES", Corpus(corpus).bytes("train") // 3 + 1)
    assert list(tokenizer.training_sample(Corpus(corpus))) == everything[::3]


def test_vocabularies_are_padded_to_the_next_multiple_of_64():
    assert [tokenizer.padded(size) for size in (300, 320, 50257, 50304)] == [320, 320, 50304, 50304]


def test_a_model_has_one_of_the_sizes_that_its_tokenizer_is_padded_to():
    assert {50257, 50304, 50432, 50688} <= paddings(50257)
    assert 320 not in paddings(1)
    assert min(paddings(320)) == 320
