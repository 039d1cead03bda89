import math

import numpy as np
import pytest
from nltk.lm.smoothing import KneserNey

from krakenlm.evaluation import ngrams
from krakenlm.evaluation.documents import COLUMNS
from krakenlm.text.store import TokenStore

# Token 3 of the vocabulary of 4 is never seen.
TOY = np.array([0, 1, 0, 2, 0, 1])


def test_bigram_probabilities_are_those_computed_by_hand():
    # Bigrams 01 (twice), 10, 02, 20: 0 has two distinct predecessors, 1 and 2 have one, in all 4.
    model = ngrams.InterpolatedKneserNey(TOY, order=2, vocabulary=4)
    uniform = 0.75 * 3 / 4
    lowest = [(2 - 0.75 + uniform) / 4, (1 - 0.75 + uniform) / 4, (1 - 0.75 + uniform) / 4, uniform / 4]
    assert [model.unmasked_score(token) for token in range(4)] == pytest.approx(lowest)
    # After 0 came 1 twice and 2 once.
    kept = 0.75 * 2 / 3
    after_0 = [kept * lowest[0], (2 - 0.75) / 3 + kept * lowest[1], (1 - 0.75) / 3 + kept * lowest[2], kept * lowest[3]]
    assert [model.unmasked_score(token, (0,)) for token in range(4)] == pytest.approx(after_0)
    # Nothing came after 3, so it tells nothing.
    assert [model.unmasked_score(token, (3,)) for token in range(4)] == pytest.approx(lowest)


@pytest.fixture(scope="module")
def text():
    draws = np.random.default_rng(0)
    return np.minimum(draws.geometric(0.3, size=400), 12)


def test_distributions_of_a_5_gram_sum_to_one_after_every_context(text):
    model = ngrams.InterpolatedKneserNey(text, order=5, vocabulary=15)
    contexts = [tuple(text[start : start + length].tolist()) for start in range(0, 396, 7) for length in range(5)]
    contexts += [(14, 14, 14, 14), (1, 14, 2, 1), (12, 12, 12, 12)]
    for context in contexts:
        scores = [model.unmasked_score(token, context) for token in range(15)]
        assert math.fsum(scores) == pytest.approx(1, abs=1e-12)
        assert min(scores) > 0


def test_index_gives_the_continuation_counts_that_nltk_finds_by_searching(text):
    model = ngrams.InterpolatedKneserNey(text, order=5, vocabulary=15)
    for context in {tuple(text[start : start + length].tolist()) for start in range(5, 390, 9) for length in range(4)}:
        for token in range(13):
            searched = KneserNey._continuation_counts(model.estimator, token, context)
            assert model.estimator._continuation_counts(token, context) == searched


def test_rows_score_the_same_tokens_as_a_models_and_longer_contexts_score_better(tokens, tokenizer, tmp_path):
    rows = ngrams.evaluate(tokens, tokenizer, tmp_path / "out.csv", scale="tiny", run="here")
    assert [row["model"] for row in rows] == ["unigram", "bigram", "Kneser-Ney 5-gram"]
    assert {row["tokens"] for row in rows} == {len(TokenStore(tokens).tokens("val")) - 1}
    assert rows[0]["loss"] > rows[1]["loss"] > rows[2]["loss"] > rows[2]["floor_loss"]
    assert all(row["ci_low"] < row["perplexity"] < row["ci_high"] for row in rows)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_unigram_loss_is_that_of_counts_with_one_added():
    losses_P, stored = ngrams.unigram(np.array([0, 0, 1]), np.array([2, 0, 2]), vocabulary=3)
    assert losses_P == pytest.approx([-math.log(3 / 6), -math.log(1 / 6)])
    assert stored == 2
