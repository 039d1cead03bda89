"""tokenizer.json: a byte-level BPE trained on the corpus, or a published one."""

import functools
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from krakenlm.config import fingerprint
from krakenlm.errors import InputError
from krakenlm.files import writing
from krakenlm.machine import cores
from krakenlm.text.documents import Corpus
from krakenlm.text.store import LITTLE_ENDIAN

END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
# Models' vocabularies are padded to this: matrix products are fast at such sizes (as in nanoGPT, 50257 -> 50304).
PADDED_TO = 64
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
    """Write a published tokenizer to `out`.

    Args:
        pretrained: `gpt2`; the path of a tokenizer.json; a folder with one, or with GPT-2's vocab.bpe and encoder.json;
            or a name on the hub.
        out: tokenizer.json.

    Raises:
        InputError: it cannot be had, has no end token, or ids with gaps.
    """
    from krakenlm.text import gpt2

    path = Path(pretrained)
    if pretrained == "gpt2":
        tokenizer = gpt2.fetch()
    elif path.is_file() or (path / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(path if path.is_file() else path / "tokenizer.json")
    elif path.is_dir():
        tokenizer = gpt2.read(path)
    else:
        tokenizer = from_hub(pretrained)
    end_token(tokenizer, pretrained)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= len(vocabulary):
        raise InputError(
            f"text.tokenizer: expected ids from 0 to {len(vocabulary) - 1} in {pretrained}, found "
            f"{max(vocabulary.values())}; use another tokenizer"
        )
    save(tokenizer, out)


def from_hub(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exceptions, for a wrong name and for no network alike
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"text.tokenizer: expected gpt2, a path or a tokenizer of the hub, could not get {name!r} ({reason}); "
            "check the name and the network"
        ) from None


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


def padded(vocabulary: int) -> int:
    """The vocab_size of models of so many tokens."""
    return (vocabulary + PADDED_TO - 1) // PADDED_TO * PADDED_TO


def paddings(vocabulary: int) -> set[int]:
    """The vocab_size that models of so many tokens have: ours (`padded`), or others' who pad to up to 512."""
    return {-(-vocabulary // (1 << power)) * (1 << power) for power in range(10)}


def tokenizer_checksum(tokenizer: Tokenizer) -> str:
    """SHA-256 of vocabulary and merges: equal for two tokenizer.json that differ only in who wrote them.

    Normalizers, pre-tokenizers and added tokens, which have several spellings each, are not in it.
    """
    model = json.loads(tokenizer.to_str())["model"]
    return fingerprint([model.get("vocab"), merged_pairs(model)], 64)


def merged_pairs(model: Mapping) -> list[list[str]]:
    """Merges of a BPE, which tokenizer.json has as lists or, from older versions, as strings."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]


def end_token(tokenizer: Tokenizer, name: str) -> int:
    """Id of the token that ends a document: the first of END_TOKENS that the vocabulary has."""
    found = [token for token in map(tokenizer.token_to_id, END_TOKENS) if token is not None]
    if not found:
        raise InputError(
            f"{name}: expected a tokenizer with one of {', '.join(END_TOKENS)}, found none in its vocabulary; "
            "use another"
        )
    return found[0]


class Encoder:
    """tokenizer.json as the tokens stage uses it: batches of documents, of any length, to arrays of ids.

    Attributes: `vocabulary`, the number of tokens; `end`, the id of the token that ends a document; `dtype`, "uint16"
    or "uint32", which holds every id.

    Args:
        path: tokenizer.json; GPT-2's is encoded by tiktoken, with the same ids.
        threads: for tiktoken, all cores unless given (those of `tokenizers` are set by RAYON_NUM_THREADS).

    Raises:
        InputError: the file is missing, is not a tokenizer, or has no end token.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.tokenizer = load_tokenizer(path)
        self.vocabulary = self.tokenizer.get_vocab_size()
        self.end = end_token(self.tokenizer, str(path))
        self.dtype = "uint16" if self.vocabulary <= 1 << 16 else "uint32"
        self.parted = splits_at_blanks(self.tokenizer)
        threads = threads or cores()
        # One thread encodes where it is: to hand each document over costs up to a tenth more.
        self.map = map if threads == 1 else ThreadPoolExecutor(threads).map

    @functools.cached_property
    def encoding(self) -> "tiktoken.Encoding | None":  # noqa: F821
        """tiktoken's, if it has the same ids; made where something is encoded, since that takes time."""
        from krakenlm.text import gpt2

        return gpt2.encoding(self.tokenizer)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all documents, an end token after each; number of ids of each document, that token included)."""
        parts = [part_of(text) if self.parted else [text] for text in texts]
        encoded = iter(self.encode_parts([*itertools.chain(*parts)]))
        end = np.array([self.end], LITTLE_ENDIAN[self.dtype])
        documents = [[*(next(encoded) for _ in text), end] for text in parts]
        length_U = np.fromiter((sum(map(len, arrays)) for arrays in documents), np.int64, len(documents))
        return np.concatenate([*itertools.chain(*documents)], dtype=end.dtype, casting="unsafe"), length_U

    def encode_parts(self, parts: list[str]) -> Iterator[np.ndarray]:
        """The ids of each part."""
        if self.encoding is not None:
            # Nothing disallowed and nothing special: a text that spells the end token is a text.
            return self.map(lambda part: self.encoding.encode_to_numpy(part, disallowed_special=()), parts)
        encoded = self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        return (np.array(item.ids, LITTLE_ENDIAN[self.dtype]) for item in encoded)


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
    starts = [0]
    while len(text) - starts[-1] > PART_CHARACTERS:
        longest = starts[-1] + 2 * PART_CHARACTERS
        blank = BEFORE_BLANK.search(text, starts[-1] + PART_CHARACTERS, longest)
        if not blank and longest >= len(text):
            break
        starts.append(blank.end() if blank else longest)
    return [text[start:stop] for start, stop in itertools.pairwise([*starts, len(text)])]
