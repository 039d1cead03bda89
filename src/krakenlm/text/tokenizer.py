"""tokenizer.json: a byte-level BPE trained on the corpus, or a published one."""

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from krakenlm.errors import InputError
from krakenlm.files import writing
from krakenlm.text.documents import read_documents

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(corpus_dir: str | Path, vocabulary: int, out: str | Path) -> None:
    """Train a byte-level BPE (GPT-2's kind) on the training split and write it to `out`.

    The same corpus gives the same file: merges are ranked by count, equal counts by their ids.

    Args:
        corpus_dir: folder with train.jsonl.
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
    texts = (document["text"] for document in read_documents(corpus_dir, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        print(
            f"text.vocabulary: {vocabulary} asked for, {tokenizer.get_vocab_size()} found: the text has no more pairs "
            "to merge",
            file=sys.stderr,
        )
    save(tokenizer, out)


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
