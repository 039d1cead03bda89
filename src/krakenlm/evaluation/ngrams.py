"""What counting alone achieves on the same tokens: unigram, bigram and Kneser-Ney 5-gram.

The Kneser-Ney model is nltk's interpolated one (nltk.lm.smoothing.KneserNey), which is right and runs wherever
Python does; two of its methods are replaced, see `IndexedKneserNey`. What else was tried: knlm takes raw counts
where the middle orders want continuation counts and gives unseen tokens nothing; arpabo never interpolates, so its
distributions do not sum to one; kenlm's Python package only queries; VariKN is good and fast, with wheels for
Python 3.10 and 3.11 only.
"""

import functools
import math
from pathlib import Path

import numpy as np
from nltk.lm import NgramCounter, Vocabulary
from nltk.lm.models import InterpolatedLanguageModel
from nltk.lm.smoothing import KneserNey
from nltk.probability import ConditionalFreqDist

from krakenlm.errors import InputError
from krakenlm.evaluation.documents import COLUMNS, by_document, scores, validation_tokens
from krakenlm.files import write_table
from krakenlm.progress import Progress
from krakenlm.text.store import TokenStore

# nltk counts in Python dictionaries, which takes about 1 kB an n-gram.
MOST_TRAINING_TOKENS = 5_000_000
# A common choice. On the embedded corpus's validation set losses from 0.5 to 0.9 lie within 0.6% of one another, and
# 0.75 is 0.7% better than n1 / (n1 + 2 n2) of the 5-grams; nltk's default of 0.1 is 4.5% worse than 0.75.
DISCOUNT = 0.75


def evaluate(tokens: Path, tokenizer: Path, out: Path, scale: str, run: str) -> list[dict]:
    """Count n-grams of the training tokens, score the validation tokens and write three rows as CSV.

    Every validation token but the first is predicted from the tokens before it, as many as the model looks at
    (0, 1, 4), end tokens included: the same tokens as a neural model's row. No token has probability zero: to
    each unigram count one is added; bigram and 5-gram are interpolated Kneser-Ney with one discount (0.75), whose
    lowest order is interpolated with the uniform distribution over the vocabulary.

    Args:
        tokens: tokens folder (text.store.TokenStore).
        tokenizer: tokenizer.json that made it, for the documents' bytes.
        out: the CSV to write, with the columns of `documents.COLUMNS`; `parameters` is the number of n-grams
            stored, of all orders.
        scale, run: go into the rows.

    Raises:
        InputError: the tokens are damaged, or too many or too few to be counted here.
    """
    store = TokenStore(tokens)
    train, validation = (array.astype(np.int64) for array in (store.tokens("train"), validation_tokens(store)))
    if not 5 < len(train) <= MOST_TRAINING_TOKENS:
        raise InputError(
            f"{tokens}: expected 6 to {MOST_TRAINING_TOKENS} training tokens for n-grams, found {len(train)}; "
            "set evaluation.ngrams to false"
        )
    vocabulary = store.manifest["vocabulary"]
    rows = []
    for name, order in (("unigram", 1), ("bigram", 2), ("Kneser-Ney 5-gram", 5)):
        losses_P, stored = score(train, validation, vocabulary, order)
        rows.append(
            {
                "model": name,
                "architecture": "n-gram",
                "parameters": stored,
                "tokens_seen": len(train),
                **scores(by_document(losses_P, np.arange(1, len(validation)), store, tokenizer), store.manifest),
                "data": store.manifest["data"],
                "protocol": f"whole validation set, {order - 1} tokens of context",
                "scale": scale,
                "run": run,
            }
        )
    return write_table(out, rows, COLUMNS)


def score(train: np.ndarray, validation: np.ndarray, vocabulary: int, order: int) -> tuple[np.ndarray, int]:
    """Loss in nats of each validation token but the first, and number of stored n-grams."""
    model = unigram if order == 1 else functools.partial(kneser_ney, order=order)
    return model(train, validation, vocabulary)


def unigram(train: np.ndarray, validation: np.ndarray, vocabulary: int) -> tuple[np.ndarray, int]:
    """Losses in nats and number of stored counts, one added to each count."""
    counts = np.bincount(train, minlength=vocabulary)
    probabilities = (counts + 1) / (counts + 1).sum()
    return -np.log(probabilities[validation[1:]]), int(np.count_nonzero(counts))


def kneser_ney(train: np.ndarray, validation: np.ndarray, vocabulary: int, order: int) -> tuple[np.ndarray, int]:
    """Losses in nats and number of stored n-grams of an interpolated Kneser-Ney model."""
    model = InterpolatedKneserNey(train, order, vocabulary)
    tokens = validation.tolist()
    losses = []
    progress = Progress(f"ngrams, order {order}", len(tokens) - 1, "tokens")
    for position in range(1, len(tokens)):
        context = tuple(tokens[max(0, position - order + 1) : position])
        losses.append(-math.log(model.unmasked_score(tokens[position], context)))
        progress.add(1)
    return np.array(losses), model.stored


class InterpolatedKneserNey(InterpolatedLanguageModel):
    """nltk's interpolated Kneser-Ney over integer tokens.

    `unmasked_score(token, context)` is P(token | context) for a tuple of tokens, the nearest last.
    """

    def __init__(self, train: np.ndarray, order: int, vocabulary: int):
        counter, self.stored = count(train, order)
        super().__init__(
            IndexedKneserNey,
            order,
            vocabulary=Vocabulary(range(vocabulary)),
            counter=counter,
            params={"order": order, "discount": DISCOUNT, "types": vocabulary},
        )
        # Shorter contexts come again and again; nltk asks itself for them by this name.
        self.unmasked_score = functools.cache(self.unmasked_score)


def count(train: np.ndarray, order: int) -> tuple[NgramCounter, int]:
    """Count the n-grams of 1 to `order` tokens that end where an n-gram of `order` tokens ends; also how many differ.

    So every shorter n-gram has a token before it, and a context is continued by as many distinct tokens as have a
    continuation count: that makes the distributions sum to one.
    """
    counter, stored = NgramCounter(), 0
    windows = np.lib.stride_tricks.sliding_window_view(train, order)
    rank = np.zeros(len(windows), dtype=np.int64)
    for length in range(1, order + 1):
        # An n-gram's rank is that of its first token and of the rank of the others: one number to sort by.
        numbers = windows[:, order - length] * (rank.max() + 1) + rank
        _, first, rank, times = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        stored += len(first)
        store_counts(counter, length, windows[first, order - length :].tolist(), times.tolist())
    return counter, stored


def store_counts(counter: NgramCounter, length: int, grams: list[list[int]], times: list[int]) -> None:
    if length == 1:
        counter.unigrams.update({gram[0]: n for gram, n in zip(grams, times, strict=True)})
        return
    counts: ConditionalFreqDist = counter[length]
    for gram, n in zip(grams, times, strict=True):
        counts[tuple(gram[:-1])][gram[-1]] = n


class IndexedKneserNey(KneserNey):
    """nltk's Kneser-Ney with two methods replaced.

    nltk looks through all n-grams for every continuation count (hours here); this looks them up in an index, with
    the same result. And nltk gives a token that no bigram of the training text ends in probability zero; here
    the lowest order is discounted and interpolated with the uniform distribution, like the orders above it
    (Chen and Goodman 1999, section 3.6).
    """

    def __init__(self, vocabulary: Vocabulary, counter: NgramCounter, order: int, discount: float, types: int):
        super().__init__(vocabulary, counter, order, discount=discount)
        self.types = types
        self.continuations = ConditionalFreqDist()
        for length in range(2, order + 1):
            for context, successors in counter[length].items():
                for token in successors:
                    self.continuations[context[1:]][token] += 1
        self.totals = {context: seen.N() for context, seen in self.continuations.items()}

    def _continuation_counts(self, word: int, context: tuple = ()) -> tuple[int, int]:
        return self.continuations[context][word], self.totals[context]

    def unigram_score(self, word: int) -> float:
        seen, total = self._continuation_counts(word)
        spread = self.discount * len(self.continuations[()]) / self.types
        return (max(seen - self.discount, 0.0) + spread) / total
