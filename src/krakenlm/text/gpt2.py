"""GPT-2's BPE: the two files that OpenAI published, fetched by tiktoken, checked, and encoded with by tiktoken."""

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from krakenlm.errors import InputError
from krakenlm.text.tokenizer import END_OF_TEXT

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
# SHA-256, as tiktoken has them.
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
FIRST_LINE = "#version: 0.2"


def fetch() -> Tokenizer:
    """GPT-2's tokenizer of the published files; tiktoken keeps them in TIKTOKEN_CACHE_DIR, and fetches them once.

    Raises:
        InputError: they cannot be fetched; saying what to put where.
    """
    from tiktoken.load import read_file_cached

    try:
        contents = {name: read_file_cached(f"{ADDRESS}/{name}", digest) for name, digest in FILES.items()}
    except Exception as error:  # requests' many, and tiktoken's ValueError for a wrong checksum
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"text.tokenizer: expected to fetch GPT-2's BPE from {ADDRESS}, could not ({reason}); bring {described()} "
            "into a folder and set text.tokenizer to it"
        ) from None
    return build(**{name.replace(".", "_"): content for name, content in contents.items()})


def read(folder: str | Path) -> Tokenizer:
    """GPT-2's tokenizer of a folder with vocab.bpe and encoder.json.

    Raises:
        InputError: one of them is missing or is not the published file.
    """
    contents = {}
    for name, digest in FILES.items():
        path = Path(folder) / name
        if not path.is_file():
            raise InputError(f"{path}: expected a file, found none; text.tokenizer names a folder with {described()}")
        contents[name.replace(".", "_")] = path.read_bytes()
        found = hashlib.sha256(contents[name.replace(".", "_")]).hexdigest()
        if found != digest:
            raise InputError(f"{path}: expected the sha256 {digest}, found {found}; fetch {ADDRESS}/{name} again")
    return build(**contents)


def described() -> str:
    return " and ".join(f"{name} (sha256 {digest})" for name, digest in FILES.items())


def build(vocab_bpe: bytes, encoder_json: bytes) -> Tokenizer:
    """The tokenizer of the contents of the two files."""
    merges = [tuple(line.split(" ")) for line in vocab_bpe.decode("utf-8").split("\n")[1:-1]]
    tokenizer = Tokenizer(models.BPE(vocab=json.loads(encoder_json), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def encoding(tokenizer: Tokenizer) -> "tiktoken.Encoding | None":  # noqa: F821
    """tiktoken's encoding, three times as fast, if this is GPT-2's tokenizer, wherever it came from; otherwise None."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if content["normalizer"] is not None or (content["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        return None
    if model["type"] != "BPE" or content["pre_tokenizer"]["add_prefix_space"] or len(model["vocab"]) != 50257:
        return None
    merges = "\n".join([FIRST_LINE, *(" ".join(pair) for pair in model["merges"]), ""])
    if hashlib.sha256(merges.encode("utf-8")).hexdigest() != FILES["vocab.bpe"]:
        return None
    # tiktoken merges by rank, which is the id: the merges' ids have to follow their order.
    if any(model["vocab"]["".join(pair)] != 256 + rank for rank, pair in enumerate(model["merges"])):
        return None
    # Here, so that other tokenizers do without: the import takes time.
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    special = {END_OF_TEXT: model["vocab"].pop(END_OF_TEXT)}
    ranks = {bytes(BYTES[character] for character in token): rank for token, rank in model["vocab"].items()}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def byte_of_character() -> dict[str, int]:
    """GPT-2's names of bytes: a printable one is itself, the others are characters from 256 on, in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = byte_of_character()
