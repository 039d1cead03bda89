import json
import shutil
from pathlib import Path

import pytest
import torch

from krakenlm import models
from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import train_tokenizer
from krakenlm.text.tokenizing import tokenize

STORIES = [
    "Ann bought a hat at the market.\nQuestion: did Ann buy a hat?\nAnswer: yes",
    "Ben lost a kite. He was sad because he liked the kite.\nQuestion: did Ben buy a kite?\nAnswer: no",
    "Passage: Tom thanked *him* for the bike. True, False, or Neither? Is the answer correct?",
]


DOWNLOAD = Path(__file__).parents[3] / "shared" / "data" / "fewglue"


@pytest.fixture(scope="session")
def download():
    """Labelled examples in the format of the official SuperGLUE download, which this project does not hold itself."""
    if not DOWNLOAD.is_dir():
        pytest.skip(f"needs labelled examples of the official download in {DOWNLOAD}")
    return DOWNLOAD


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus folder whose validation documents have a known probability, 2 nats each."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": STORIES[number % 3] + f" {number}"} for number in range(30)]
    for split, part in (("train", rows[10:]), ("val", rows[:10])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    found = Found([folder / "train.jsonl"], held_out=[folder / "val.jsonl"], nats={"train": 40.0, "val": 20.0})
    describe(folder, found, {"source": "embedded"})
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(corpus, 300, path)
    return path


@pytest.fixture(scope="session")
def tokens(corpus, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    tokenize(corpus, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory):
    """A model folder with random weights, large enough that its predictions differ much from token to token."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"architecture": "standard", "n_layer": 2, "n_head": 2, "width": 32, "vocab_size": 320, "block_size": 48}
    module = models.build(sizes)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4)
    models.save_model(module, folder)
    shutil.copy(tokenizer, folder)
    (folder / "metrics.json").write_text(json.dumps({"tokens_seen": 1234, "parameters": 5678}))
    return folder
