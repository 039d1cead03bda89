import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.evaluation import perplexity
from krakenlm.text.store import TokenStore

DESIGNED = [
    *("model", "architecture", "degree", "parameters", "tokens_seen", "data", "protocol"),
    *("loss", "perplexity", "bits_per_byte", "seed", "scale", "run"),
]


def run(model, tokens, out):
    return perplexity.evaluate(model, tokens, out, name="small", seed=3, scale="tiny", run="here", threads=1)


def hand_loss(model, tokens):
    """One token at a time, each from a forward pass over its own context."""
    module, ids = models.load_model(model), TokenStore(tokens).tokens("val").astype(np.int64)
    block, total = module.config.block_size, 0.0
    for position in range(1, len(ids)):
        start = (position - 1) // block * block
        with torch.inference_mode():
            logits_V = module(torch.from_numpy(ids[start:position])[None])[0, -1].double()
        total -= torch.log_softmax(logits_V, -1)[ids[position]].item()
    return total / (len(ids) - 1)


def test_loss_is_that_of_one_forward_pass_for_each_token(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setitem(perplexity.LOGITS_PER_BATCH, "cpu", 3 * 48 * 320)
    (row,) = run(model, tokens, tmp_path / "out.csv")
    assert row["loss"] == pytest.approx(hand_loss(model, tokens), rel=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))


def test_every_token_but_the_first_is_predicted_once_whatever_the_length():
    for total in (2, 8, 9, 10, 33, 50):
        parts = list(perplexity.batches(np.arange(total), length=8, count=3))
        predicted = torch.cat([targets.flatten() for _, targets in parts]).tolist()
        assert predicted == list(range(1, total))
        assert all((inputs + 1).equal(targets) for inputs, targets in parts)


def test_bits_per_byte_and_floor_follow_from_the_manifest(model, tokens, tmp_path):
    (row,) = run(model, tokens, tmp_path / "out.csv")
    split = TokenStore(tokens).manifest["splits"]["val"]
    assert row["tokens"] == split["tokens"] - 1
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * row["tokens"] / math.log(2) / split["bytes"])
    assert row["floor_loss"] == pytest.approx(10 * 2.0 / row["tokens"])
    assert row["data"] == "stories (synthetic)"


def test_unknown_floor_is_an_empty_cell_and_columns_stand_in_order(model, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["splits"]["val"]["nats"] = None
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    run(model, tmp_path / "tokens", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as table:
        header, row = csv.reader(table)
    assert header[: len(DESIGNED)] == DESIGNED
    assert header[len(DESIGNED) :] == ["tokens", "floor_loss", "floor_perplexity"]
    assert row[-2:] == ["", ""]
    assert row[:5] == ["small", "standard", "", "5678", "1234"]


def test_a_second_run_gives_the_same_bytes(model, tokens, tmp_path):
    for name in ("one.csv", "two.csv"):
        run(model, tokens, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_tokens_of_another_vocabulary_are_refused_before_anything_is_written(model, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_text()) | {"vocab_size": 384}
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"expected a model of vocab_size 384.* found 320"):
        run(model, tmp_path / "tokens", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
