"""Drawing tokens, and text from a model folder."""

import json
import sys

import pytest
import torch

from krakenlm import cli, models
from krakenlm.errors import InputError
from krakenlm.inference.complete import complete, pieces, tokens_on_rank
from krakenlm.inference.generate import Sampling, likeliest
from krakenlm.models.collectives import ALONE
from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import load_tokenizer, train_tokenizer

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).repeat(4000, 1)


def shares(sampling):
    return torch.bincount(sampling(LOGITS), minlength=4) / len(LOGITS)


def test_tokens_are_drawn_with_the_softmax_of_the_logits_over_the_temperature():
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS[0] / temperature).softmax(0)
        torch.testing.assert_close(shares(Sampling(temperature)), expected, atol=0.03, rtol=0)


def test_top_k_and_top_p_cut_the_unlikely():
    assert (shares(Sampling(top_k=2)) > 0).tolist() == [False, True, False, True]
    assert (shares(Sampling(top_p=0.6)) > 0).tolist() == [False, True, False, False]
    assert (shares(Sampling(top_p=0.7)) > 0).tolist() == [False, True, False, True]


def test_the_same_seed_draws_the_same_tokens():
    assert torch.equal(Sampling(seed=3)(LOGITS), Sampling(seed=3)(LOGITS))
    assert not torch.equal(Sampling(seed=3)(LOGITS), Sampling(seed=4)(LOGITS))


def test_the_likeliest_is_the_largest():
    assert likeliest(LOGITS[:2]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "line"),
    [({"temperature": -1.0}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p")],
)
def test_options_out_of_their_range_are_named(options, line):
    with pytest.raises(InputError, match=f"{line}: expected"):
        Sampling(**options)


@pytest.fixture
def model(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.jsonl").write_text(json.dumps({"text": "naïve café, 10 €, 火"}) + "\n")
    found = Found([corpus / "train.jsonl"], held_out=[corpus / "train.jsonl"])
    describe(corpus, found, {"source": "embedded"})
    train_tokenizer(corpus, 300, tmp_path / "model" / "tokenizer.json")
    torch.manual_seed(0)
    sizes = {"architecture": "kraken", "degree": 2, "n_layer": 2, "n_head": 2, "width": 16, "block_size": 24}
    models.save_model(models.build(sizes | {"vocab_size": 320}), tmp_path / "model")
    return tmp_path / "model"


def test_pieces_put_together_are_the_decoded_tokens(model):
    tokenizer = load_tokenizer(model / "tokenizer.json")
    tokens = tokenizer.encode("naïve 火 €").ids  # several of these are parts of a character
    assert "".join(pieces(iter([*tokens, 0, 5]), tokenizer, end=0)) == "naïve 火 €"


def test_what_only_pads_the_vocabulary_is_never_drawn(model):
    # Of 320 ids, all about equally likely at this temperature, 5 are tokens.
    tokens = tokens_on_rank(ALONE, "cpu", str(model), [1], 23, {"temperature": 1e6}, vocabulary=5)
    assert set(tokens) <= set(range(5))


def test_a_choice_among_several_tokens_without_a_temperature_is_refused(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["krakenlm", "generate", str(model), "the", "--top-k", "5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--temperature: expected a number above 0 beside --top-k or --top-p, found 0" in capsys.readouterr().err


def test_generation_ends_with_the_block(model, monkeypatch):
    tokens = []

    def count(logits_BV):
        tokens.append(1)
        return torch.tensor([5])

    monkeypatch.setattr("krakenlm.inference.complete.choice", lambda sampling: count)
    list(complete(model, "café", 1000))
    prompt = len(load_tokenizer(model / "tokenizer.json").encode("café").ids)
    assert len(tokens) == 24 - prompt


def test_a_prompt_that_fills_the_block_is_refused(model):
    with pytest.raises(InputError, match=r"prompt: expected fewer than block_size \(24\) tokens"):
        list(complete(model, "xyz " * 30, 5))


@pytest.mark.parametrize("sampling", [None, {"temperature": 0.9, "seed": 4}])
def test_two_processes_write_what_one_writes(model, sampling):
    alone = list(complete(model, "café", 12, sampling))
    assert alone
    assert list(complete(model, "café", 12, sampling, tp=2)) == alone


def test_more_ranks_than_divide_the_model_are_refused_with_those_that_do(model):
    with pytest.raises(InputError, match=r"tp: expected a divisor of the degree \(2\).* found 3"):
        list(complete(model, "café", 12, tp=3))
