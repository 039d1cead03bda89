"""tokenizer.json: a byte-level BPE trained on the corpus, or a published one."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from krakenlm.errors import InputError
from krakenlm.files import writing
from krakenlm.text.documents import Corpus
from krakenlm.text.store import LITTLE_ENDIAN

END_OF_TEXT = "<|endoftext|>"
# What a tokenizer is trained on at most: its memory grows with the number of different words.
SAMPLE_BYTES = 500_000_000
# Characters of a document that are encoded at once, and how far a blank is looked for to part them at.
PART_CHARACTERS = 1_000_000
# Only these two blanks: what else is one differs between regular expressions.
BEFORE_BLANK = re.compile(r"\S(?=[ \n])")


def train_tokenizer(corpus_dir: str | Path, vocabulary: int, out: str | Path) -> None:
    """Train a byte-level BPE (GPT-2's kind) on the training split, or a sample of it, and write it to `out`.

    The same corpus gives the same file: merges are ranked by count, equal counts by their ids.

    Args:
        corpus_dir: the corpus folder.
        vocabulary: number of tokens, the 256 bytes and the end token included; fewer come out of a text that has
            no more pairs to merge.
        out: tokenizer.json.

    Raises:
        InputError: there is no corpus, or `vocabulary` has no room for the bytes.
    """
    if vocabulary < 257:
        raise InputError(
            f"text.vocabulary: expected at least 257 (256 bytes and {END_OF_TEXT}), found {vocabulary}; raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_sample(Corpus(corpus_dir)), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        print(
            f"text.vocabulary: {vocabulary} asked for, {tokenizer.get_vocab_size()} found: the text has no more pairs "
            "to merge",
            file=sys.stderr,
        )
    save(tokenizer, out)


def training_sample(corpus: Corpus) -> Iterator[str]:
    """The training documents, or every so-manieth of them where all would be more than SAMPLE_BYTES."""
    step = -(-corpus.bytes("train") // SAMPLE_BYTES)
    return itertools.islice(corpus.training_documents(), 0, None, max(1, step))


def fetch_tokenizer(pretrained: str, out: str | Path) -> None:
    """Write the hub's tokenizer `pretrained` (such as openai-community/gpt2) to `out`.

    Raises:
        InputError: it cannot be had, or has no end token.
    """
    try:
        tokenizer = Tokenizer.from_pretrained(pretrained)
    except Exception as error:  # the library raises bare Exceptions, for a wrong name and for no network alike
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"text.tokenizer: expected a tokenizer of the hub, could not get {pretrained!r} ({reason}); "
            "check the name and the network"
        ) from None
    end_token(tokenizer, pretrained)
    save(tokenizer, out)


def save(tokenizer: Tokenizer, out: str | Path) -> None:
    with writing(out) as temporary:
        tokenizer.save(str(temporary))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read tokenizer.json so that it takes every text as text, even one that spells the end token.

    Raises:
        InputError: the file is missing, is not a tokenizer, or has no end token.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a tokenizer, found no such file; run the tokenizer stage")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # see above: bare Exceptions
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: expected a tokenizer.json, found a damaged file ({reason}); make it again") from None
    end_token(tokenizer, str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_token(tokenizer: Tokenizer, name: str) -> int:
    """Id of the token that ends a document."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise InputError(f"{name}: expected a tokenizer with {END_OF_TEXT}, found none in its vocabulary; use another")
    return end


class Encoder:
    """tokenizer.json as the tokens stage uses it: batches of documents, of any length, to arrays of ids.

    Attributes: `vocabulary`, the number of tokens; `end`, the id of the token that ends a document; `dtype`, "uint16"
    or "uint32", which holds every id.

    Raises:
        InputError: the file is missing, is not a tokenizer, or has no end token.
    """

    def __init__(self, path: str | Path) -> None:
        self.tokenizer = load_tokenizer(path)
        self.vocabulary = self.tokenizer.get_vocab_size()
        self.end = end_token(self.tokenizer, str(path))
        self.dtype = "uint16" if self.vocabulary <= 1 << 16 else "uint32"
        self.parted = splits_at_blanks(self.tokenizer)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all documents, an end token after each; number of ids of each document, that token included)."""
        parts = [part_of(text) if self.parted else [text] for text in texts]
        encoded = iter(self.tokenizer.encode_batch_fast([*itertools.chain(*parts)], add_special_tokens=False))
        ids = [[*itertools.chain(*(next(encoded).ids for _ in text)), self.end] for text in parts]
        length_U = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(itertools.chain(*ids), LITTLE_ENDIAN[self.dtype], int(length_U.sum())), length_U


def splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is byte-level as GPT-2's is: no token goes on from a character into a blank behind it."""
    content = json.loads(tokenizer.to_str())
    splitting = content["pre_tokenizer"] or {}
    return (
        content["normalizer"] is None
        and splitting.get("type") == "ByteLevel"
        and splitting.get("use_regex", True)
        and not splitting["add_prefix_space"]
    )


def part_of(text: str) -> list[str]:
    """The text in parts whose tokens, one after the other, are the text's: an encoder needs 200 times its memory.

    A part ends before a blank that follows a character. Only where there is none over PART_CHARACTERS, in no language's
    text, it ends anywhere.
    """
    parts, start = [], 0
    while len(text) - start > PART_CHARACTERS:
        blank = BEFORE_BLANK.search(text, start + PART_CHARACTERS, start + 2 * PART_CHARACTERS)
        stop = blank.end() if blank else start + 2 * PART_CHARACTERS
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]
