import csv
import json
import math
import shutil

import numpy as np
import pandas
import pytest
import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.evaluation import perplexity, windows
from krakenlm.text.store import TokenStore

DESIGNED = [
    *("model", "architecture", "degree", "parameters", "tokens_seen", "data", "protocol"),
    *("loss", "perplexity", "bits_per_byte", "seed", "scale", "run"),
]


def run(model, tokens, out, **changes):
    return perplexity.evaluate(model, tokens, out, name="small", seed=3, scale="tiny", run="here", threads=1, **changes)


def hand_loss(model, tokens, stride=48):
    """One token at a time, each from a forward pass over its own context."""
    module, ids = models.load_model(model), TokenStore(tokens).tokens("val").astype(np.int64)
    block, total = module.config.block_size, 0.0
    for position in range(1, len(ids)):
        # The first window that reaches this token.
        start = -(-max(0, position - block) // stride) * stride
        with torch.inference_mode():
            logits_V = module(torch.from_numpy(ids[start:position])[None])[0, -1].double()
        total -= torch.log_softmax(logits_V, -1)[ids[position]].item()
    return total / (len(ids) - 1)


def test_loss_is_that_of_one_forward_pass_for_each_token(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setitem(perplexity.LOGITS_PER_BATCH, "cpu", 3 * 48 * 320)
    for stride in (48, 20):
        whole, strided = run(model, tokens, tmp_path / "out.csv", stride=stride)
        assert strided["loss"] == pytest.approx(hand_loss(model, tokens, stride), rel=1e-6)
        assert strided["perplexity"] == pytest.approx(math.exp(strided["loss"]))
        assert whole["loss"] == pytest.approx(hand_loss(model, tokens), rel=1e-6)
        assert (strided["tokens"], strided["documents"]) == (whole["tokens"], whole["documents"])
        assert strided["protocol"] == f"whole validation set, stride {stride}"


def test_the_authors_protocol_is_the_mean_over_random_windows_under_bfloat16(model, tokens, tmp_path):
    _, row = run(model, tokens, tmp_path / "out.csv", authors_windows=60)
    module, ids = models.load_model(model), TokenStore(tokens).tokens("val").astype(np.int64)
    (part,) = windows.at_random(len(ids), 48, 60)
    means = []
    for start in part.first_W.tolist():
        window = torch.from_numpy(ids[start : start + 49])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits_TV = module(window[None, :-1])[0].float()
            means.append(torch.nn.functional.cross_entropy(logits_TV, window[1:]).item())
    assert row["loss"] == pytest.approx(np.mean(means), rel=1e-5)
    assert (row["protocol"], row["tokens"]) == ("authors", 60 * 48)
    assert row["ci_low"] < row["perplexity"] < row["ci_high"]
    assert row["bits_per_byte"] is None
    assert row["floor_loss"] is None
    losses = pandas.read_parquet(tmp_path / "out.parquet").groupby("protocol")[["nats", "tokens"]].sum().loc["authors"]
    assert losses["nats"] / losses["tokens"] == pytest.approx(row["loss"])


def test_two_ranks_write_what_one_writes(model, tokens, tmp_path):
    for name, ranks in (("one.csv", 1), ("two.csv", 2)):
        run(model, tokens, tmp_path / name, stride=20, authors_windows=30, ranks=ranks)
    for suffix in (".csv", ".parquet"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_a_stride_longer_than_a_window_is_refused(model, tokens, tmp_path):
    with pytest.raises(InputError, match=r"evaluation\.stride: expected 1 to 48, the model's block_size, found 49"):
        run(model, tokens, tmp_path / "out.csv", stride=49)


def test_bits_per_byte_and_floor_follow_from_the_manifest(model, tokens, tmp_path):
    (row,) = run(model, tokens, tmp_path / "out.csv")
    split = TokenStore(tokens).manifest["splits"]["val"]
    assert row["tokens"] == split["tokens"] - 1
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * row["tokens"] / math.log(2) / split["bytes"])
    assert row["floor_loss"] == pytest.approx(10 * 2.0 / row["tokens"])
    assert row["data"] == "embedded (synthetic)"


def test_unknown_floor_is_an_empty_cell_and_columns_stand_in_order(model, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["splits"]["val"]["nats"] = None
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    run(model, tmp_path / "tokens", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as table:
        header, row = csv.reader(table)
    assert header[: len(DESIGNED)] == DESIGNED
    assert header[len(DESIGNED) : len(DESIGNED) + 3] == ["tokens", "floor_loss", "floor_perplexity"]
    assert row[len(DESIGNED) + 1 : len(DESIGNED) + 3] == ["", ""]
    assert row[:5] == ["small", "standard", "", "5678", "1234"]


def test_a_second_run_gives_the_same_bytes(model, tokens, tmp_path):
    for name in ("one.csv", "two.csv"):
        run(model, tokens, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_losses_of_documents_stand_beside_the_table_and_add_up_to_it(model, tokens, tmp_path):
    (row,) = run(model, tokens, tmp_path / "out.csv")
    losses = pandas.read_parquet(tmp_path / "out.parquet")
    assert losses["nats"].sum() / losses["tokens"].sum() == pytest.approx(row["loss"])
    assert (losses["tokens"].sum(), len(losses)) == (row["tokens"], row["documents"])
    assert losses["bytes"].sum() == TokenStore(tokens).manifest["splits"]["val"]["bytes"]
    # The third document by hand: its tokens and the end token behind them, each from its own context.
    module, ids = models.load_model(model), TokenStore(tokens).tokens("val").astype(np.int64)
    ends = np.flatnonzero(ids == TokenStore(tokens).manifest["end_token"])
    total = 0.0
    for position in range(ends[1] + 1, ends[2] + 1):
        start = (position - 1) // 48 * 48
        with torch.inference_mode():
            logits_V = module(torch.from_numpy(ids[start:position])[None])[0, -1].double()
        total -= torch.log_softmax(logits_V, -1)[ids[position]].item()
    assert losses["nats"][2] == pytest.approx(total, rel=1e-6)
    assert losses["tokens"][2] == ends[2] - ends[1]


def test_intervals_over_documents_hold_the_scores(model, tokens, tmp_path):
    (row,) = run(model, tokens, tmp_path / "out.csv")
    assert row["ci_low"] < row["perplexity"] < row["ci_high"]
    assert row["bits_per_byte_ci_low"] < row["bits_per_byte"] < row["bits_per_byte_ci_high"]


def test_a_model_with_rows_for_its_tokens_alone_is_scored_on_tokens_of_a_padded_vocabulary(model, tokens, tmp_path):
    whole = models.load_model(model)
    fields = whole.config.to_dict() | {"vocab_size": TokenStore(tokens).manifest["vocabulary"]}
    cut, state = models.build(fields), whole.state_dict()
    state["embedding.tokens"] = state["embedding.tokens"][: fields["vocab_size"]]
    cut.load_state_dict(state)
    models.save_model(cut, tmp_path / "cut")
    for name in ("tokenizer.json", "metrics.json"):
        shutil.copy(model / name, tmp_path / "cut")
    assert fields["vocab_size"] < TokenStore(tokens).manifest["vocab_size"]
    (row,) = run(tmp_path / "cut", tokens, tmp_path / "out.csv")
    assert row["loss"] == pytest.approx(hand_loss(tmp_path / "cut", tokens), rel=1e-6)


def test_tokens_of_another_vocabulary_are_refused_before_anything_is_written(model, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_text()) | {"vocabulary": 370, "vocab_size": 384}
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"expected a tokenizer of 370 tokens.* found 300 and 320"):
        run(model, tmp_path / "tokens", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_tokens_of_another_tokenizer_of_the_same_size_are_refused(model, tokens, tokenizer, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    text = json.loads(tokenizer.read_text())
    merges, vocabulary = text["model"]["merges"], text["model"]["vocab"]
    # The same tokens, two of them with each other's ids; beside it the same tokenizer as another version writes it.
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    swapped = text["model"] | {"vocab": vocabulary | {first: vocabulary[second], second: vocabulary[first]}}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(text | {"model": swapped}))
    with pytest.raises(InputError, match=r"model: expected the tokenizer of .*, found another of 300 tokens, too"):
        run(tmp_path / "model", tokens, tmp_path / "out.csv")
    older = text["model"] | {"merges": [" ".join(merge) for merge in merges]}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(text | {"model": older}))
    assert run(tmp_path / "model", tokens, tmp_path / "out.csv") == run(model, tokens, tmp_path / "expected.csv")


def test_tokens_whose_manifest_names_no_tokenizer_are_scored_as_before(model, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert manifest.pop("tokenizer")
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    assert run(model, tmp_path / "tokens", tmp_path / "out.csv") == run(model, tokens, tmp_path / "expected.csv")
