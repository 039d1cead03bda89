"""The `text` keys: which files they name, what of them determines the tokens, and the folders of a corpus."""

import glob
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from krakenlm.config.hashes import content_hashes, fingerprint
from krakenlm.errors import InputError

TEXT_KEYS = {"embedded": ("words",), "files": ("files",), "hub": ("name", "revision"), "bin": ("folder", "tokenizer")}
TEXT_DEFAULTS = {"files": {"column": "text", "document": "line"}, "hub": {"column": "text"}}
# Keys that may be left out; they count only where they are set.
TEXT_CHOICES = ("deduplicate", "subset")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# Of the embedded stories, whose words are 5.1 bytes with the blank, about, and of which none has more words than that.
BYTES_PER_WORD, LONGEST_STORY = 6.0, 40
# Models of the hub that are known without their owner's name.
HUB_NAMES_WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
TOKENIZER_SUFFIXES = (".json", ".bpe", ".model", ".txt")
# Bytes of text in OpenWebText (its dataset card: 41.70 GB uncompressed); other hub data sets are looked up by hand.
HUB_TEXT_BYTES = {"Skylion007/openwebtext": 41_700_000_000}
# Bytes of text in a byte of file, about: assumptions, for prices and shares of work.
EXPANSION = {".gz": 3.0, ".zst": 3.5, ".parquet": 2.0}
# Bytes of text that one job tokenizes, and the most jobs: each keeps two files open while all are put together.
SHARD_BYTES, MOST_SHARDS = 256_000_000, 256


def require(section: Mapping, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        if key not in section:
            raise InputError(
                f"{name}.{key}: expected a value for {name}.source {section['source']!r}, found none; set it"
            )


def check_text(text: Mapping) -> None:
    require(text, TEXT_KEYS[text["source"]], "text")
    if not text.get("tokenizer") and "vocabulary" not in text:
        raise InputError("text.tokenizer: expected a published tokenizer, or text.vocabulary to train one; set one")
    tokenizer = text.get("tokenizer")
    if tokenizer and not Path(tokenizer).exists() and looks_like_path(tokenizer):
        raise InputError(
            f"text.tokenizer: expected gpt2, a path that exists or a tokenizer's name on the hub, found {tokenizer}; "
            "correct it"
        )
    if text["source"] == "bin":
        bin_files(text)
    if text["source"] != "files":
        return
    for path in expand(text["files"]):
        if path.stat().st_size == 0:
            raise InputError(f"text.files: expected text, found the empty file {path}; leave it out")


def check_amount(config: Mapping) -> None:
    """Refuse a text that cannot be enough, even if every byte of it were a token.

    Of files it is not known how much will be held out, so all of them are held against what is needed in all; nor how
    much text is in compressed ones.
    """
    text, engines = config["text"], config["engines"]
    if text["source"] not in ("embedded", "files") or any(path.suffix in EXPANSION for path in text_files(text)):
        return
    prompts = engines["prompts"] * engines["prompt_tokens"]
    found, needed = text_bytes(text), prompts + config["block_size"]
    if text["source"] == "embedded":
        # At least one story is held out, and none is longer.
        held_out = BYTES_PER_WORD * max(text["words"] * text["validation_share"], LONGEST_STORY)
        found, needed = (held_out, prompts) if found >= needed else (found, needed)
    if found < needed:
        key = "words" if text["source"] == "embedded" else "files"
        raise InputError(
            f"text.{key}: expected enough for a window of block_size ({config['block_size']} tokens) and, held out, "
            f"engines.prompts x engines.prompt_tokens ({prompts}), found about {found:.0f} bytes for {needed} tokens; "
            "give more text"
        )


def text_files(text: Mapping) -> list[Path]:
    """The user's files that hold the text or its tokens."""
    return expand(text["files"]) if text["source"] == "files" else bin_files(text) if text["source"] == "bin" else []


def bin_files(text: Mapping) -> list[Path]:
    """train.bin and val.bin of text.folder.

    Raises:
        InputError: one is missing.
    """
    paths = [Path(text["folder"]) / f"{split}.bin" for split in ("train", "val")]
    for path in paths:
        if not path.is_file():
            raise InputError(f"text.folder: expected train.bin and val.bin in it, found no {path}; correct it")
    return paths


def expand(patterns: list[str]) -> list[Path]:
    """The files that `text.files` names: files, folders (all files of known kinds below them) and glob patterns.

    Files come in the order of `patterns`, those of one pattern sorted by name.

    Raises:
        InputError: a pattern leads to no file, to one of an unknown kind, or to a name that Snakemake cannot hold.
    """
    found = []
    for number, name in enumerate(patterns):
        path, key, kinds = Path(name), f"text.files[{number}]", ", ".join(TEXT_SUFFIXES)
        if path.is_dir():
            below = sorted(item for item in path.rglob("*") if item.name.endswith(TEXT_SUFFIXES) and item.is_file())
            paths = [item for item in below if not any(part.startswith(".") for part in item.relative_to(path).parts)]
        else:
            paths = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not paths:
            raise InputError(f"{key}: expected a file, a folder with {kinds}, or a pattern, found no file at {name}")
        for item in paths:
            if not item.is_file() or not item.name.endswith(TEXT_SUFFIXES):
                raise InputError(f"{key}: expected one of {kinds}, found {item}; convert or rename the file")
            if set(str(item)) & set("{}"):
                raise InputError(f"{key}: expected a name without {{}}, found {item}; rename the file, or link to it")
        found += paths
    repeated = next((path for path, times in Counter(found).items() if times > 1), None)
    if repeated:
        raise InputError(f"text.files: expected each file once, found {repeated} more often; leave one out")
    return found


def looks_like_path(name: str) -> bool:
    """Whether this can be no tokenizer's name on the hub, of which many have no owner, such as t5-small."""
    return name.startswith((".", "/", "~")) or name.endswith(("/", *TOKENIZER_SUFFIXES)) or name.count("/") > 1


def is_hub_name(name: str) -> bool:
    """Whether this may be a model's name on the hub: `owner/name`, or one of the few that have no owner.

    A path whose folder is here is none.
    """
    owner, found, rest = name.partition("/")
    if not found:
        return name.partition("@")[0] in HUB_NAMES_WITHOUT_OWNER
    return bool(owner) and not owner.startswith((".", "~")) and "/" not in rest and not Path(owner).is_dir()


def text_bytes(text: Mapping) -> float:
    """Bytes of the corpus, about; a hub data set of unknown size counts as OpenWebText."""
    if text["source"] == "bin":
        return 0.0
    if text["source"] == "embedded":
        return BYTES_PER_WORD * text["words"]
    if text["source"] == "files":
        return sum(path.stat().st_size * EXPANSION.get(path.suffix, 1.0) for path in expand(text["files"]))
    return float(HUB_TEXT_BYTES.get(text["name"], HUB_TEXT_BYTES["Skylion007/openwebtext"]))


def shards(text: Mapping) -> int:
    """How many jobs tokenize the corpus. The tokens do not depend on it."""
    return text.get("shards") or min(MOST_SHARDS, max(1, math.ceil(text_bytes(text) / SHARD_BYTES)))


def text_settings(config: Mapping) -> dict:
    """The keys of `text` that determine the tokens, defaults filled in, and a hash of the content of all files."""
    source = config["text"]["source"]
    text = TEXT_DEFAULTS.get(source, {}) | config["text"]
    keys = ["source", "seed", "validation_share", *TEXT_KEYS[source], *TEXT_DEFAULTS.get(source, {})]
    keys.append("tokenizer" if text.get("tokenizer") else "vocabulary")
    settings = {key: text[key] for key in keys} | {key: text[key] for key in TEXT_CHOICES if text.get(key)}
    files = text_files(text)
    if text.get("tokenizer"):
        files += tokenizer_files(text["tokenizer"])
    if files:
        settings["sha256"] = fingerprint(content_hashes(files), 64)
    return settings


def tokenizer_files(tokenizer: str) -> list[Path]:
    """The files behind text.tokenizer where it is a path, none where it is a name."""
    path = Path(tokenizer)
    if path.is_dir():
        return sorted(item for item in path.iterdir() if item.name in ("tokenizer.json", "vocab.bpe", "encoder.json"))
    return [path] if path.is_file() else []


def corpus_label(text: Mapping) -> str:
    """What a person calls the corpus, in characters that a folder and a Snakemake pattern may have."""
    if text["source"] == "embedded":
        return "embedded"
    if text["source"] == "hub":
        label = text["name"].rsplit("/", 1)[-1]
    elif text["source"] == "bin":
        label = Path(text["folder"]).resolve().name
    else:
        label = Path(text["files"][0]).name if len(text["files"]) == 1 else f"{len(text['files'])}-files"
        label = re.sub(rf"({'|'.join(map(re.escape, sorted(TEXT_SUFFIXES, key=len, reverse=True)))})$", "", label)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "text"


def corpus_folder(config: Mapping) -> str:
    """`<scale>/<corpus>`: where everything made from this text lives under results/."""
    settings = text_settings(config)
    return f"{config['scale']}/{corpus_label(settings)}-{fingerprint(settings)}"


def data_label(text: Mapping) -> str:
    """What the `data` column of every table says; the embedded corpus says that it is synthetic."""
    label = corpus_label(text)
    return f"{label} (synthetic)" if text["source"] == "embedded" else label
