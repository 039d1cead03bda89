"""The `evaluation` keys: SuperGLUE's files, and the flags of the stages."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from krakenlm.config.text import require
from krakenlm.errors import InputError

# Tasks as everything here names them -> their folders in the official download.
SUPERGLUE_FOLDERS = {
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
}
# Tokens of the longest answer of SuperGLUE's own texts under a small vocabulary, about.
SUPERGLUE_BLOCK = 512
SUPERGLUE_KEYS = {"embedded": ("seed", "examples"), "official": ("folder",), "hub": ()}


def check_superglue(config: Mapping) -> None:
    superglue, text = config["evaluation"]["superglue"], config["text"]
    require(superglue, SUPERGLUE_KEYS[superglue["source"]], "evaluation.superglue")
    if superglue["source"] == "official" and not Path(superglue["folder"]).is_dir():
        raise InputError(
            f"evaluation.superglue.folder: expected the folder of SuperGLUE's download, found none at "
            f"{superglue['folder']}; correct the path"
        )
    for path in superglue_files(config):
        if not Path(path).is_file():
            raise InputError(
                f"evaluation.superglue.folder: expected the eight tasks of SuperGLUE's download, found no {path}; "
                "correct the path, or evaluation.superglue.split"
            )
    if superglue["source"] != "embedded" and not text.get("tokenizer") and config["block_size"] < SUPERGLUE_BLOCK:
        raise InputError(
            f"block_size: expected {SUPERGLUE_BLOCK} at least for evaluation.superglue.source "
            f"{superglue['source']} under a tokenizer that is trained here, since SuperGLUE's longest answers have to "
            f"fit, found {config['block_size']}; set block_size to {SUPERGLUE_BLOCK}"
        )


def superglue_files(config: Mapping) -> list[str]:
    """The files of an official SuperGLUE download that the tasks are made from; none for other sources."""
    superglue = config["evaluation"]["superglue"]
    if superglue["source"] != "official":
        return []
    return [
        f"{superglue['folder']}/{task}/{superglue.get('split', 'val')}.jsonl" for task in SUPERGLUE_FOLDERS.values()
    ]


def superglue_flags(config: Mapping) -> str:
    """Flags of `krakenlm tasks`."""
    superglue = config["evaluation"]["superglue"]
    if superglue["source"] == "official":
        return shlex.join(["--official", superglue["folder"], "--split", superglue.get("split", "val")])
    return f"--seed {superglue.get('seed', 0)} --examples {superglue.get('examples', 1)}"


def perplexity_flags(config: Mapping) -> str:
    """Flags of `krakenlm perplexity` for the protocols beside the first."""
    evaluation = config["evaluation"]
    stride = [f"--stride {evaluation['stride']}"] if "stride" in evaluation else []
    return " ".join([*stride, f"--authors-windows {evaluation['authors_windows']}"])
