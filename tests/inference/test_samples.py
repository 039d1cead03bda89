import contextlib

import numpy as np
import pytest
import torch

from krakenlm import models
from krakenlm.cli import inference as commands
from krakenlm.errors import InputError
from krakenlm.files import read_json
from krakenlm.inference.samples import beginnings, write_samples
from krakenlm.latency import exclusive
from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import load_tokenizer, train_tokenizer
from krakenlm.text.tokenizing import tokenize
from krakenlm.tracking import run as tracking
from krakenlm.tracking.dashboard import BARS

TEXT = '{"text": "Ann met Ben at the old harbour, and Ben met Ann."}\n'


@pytest.fixture
def trained(tmp_path):
    """Two small models with a tokenizer of their own text, and its tokens."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "val"):
        (corpus / f"{name}.jsonl").write_text(TEXT * 3)
    describe(corpus, Found([corpus / "train.jsonl"], held_out=[corpus / "val.jsonl"]), {"source": "embedded"})
    train_tokenizer(corpus, 270, tmp_path / "tokenizer.json")
    tokenize(corpus, tmp_path / "tokenizer.json", tmp_path / "tokens")
    folders = [tmp_path / name / "seed3-abc" for name in ("standard", "ladder")]
    for folder in folders:
        torch.manual_seed(0)
        sizes = {"n_layer": 2, "n_head": 2, "width": 16, "block_size": 40, "vocab_size": 320}
        models.save_model(models.build(sizes | {"architecture": folder.parent.name}), folder)
        (folder / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    return folders, tmp_path / "tokens"


def test_every_model_goes_on_from_the_same_beginnings_of_documents(trained, tmp_path):
    folders, tokens = trained
    write_samples(folders, tokens, tmp_path / "samples.json", documents=2, new_tokens=5)
    written = read_json(tmp_path / "samples.json")
    assert [(row["model"], row["seed"]) for row in written["samples"]] == [("standard", "3")] * 2 + [
        ("ladder", "3")
    ] * 2
    prompts = [row["prompt"] for row in written["samples"]]
    assert prompts[:2] == prompts[2:]
    assert all("Ann met Ben at the old harbour, and Ben met Ann.".startswith(prompt) for prompt in prompts)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert all(0 < len(tokenizer.encode(prompt).ids) <= 20 for prompt in prompts)
    assert any(row["text"] for row in written["samples"])


def test_the_same_seed_writes_the_same_text(trained, tmp_path):
    first, second = (write_samples(*trained, tmp_path / name, documents=1, new_tokens=8) for name in ("a", "b"))
    assert first == second
    assert first != write_samples(*trained, tmp_path / "c", documents=1, new_tokens=8, seed=1)


def test_a_beginning_is_half_a_document_and_no_longer_than_it_may_be():
    ids = np.array([5, 6, 7, 8, 0, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 9])
    assert beginnings(ids, end=0, documents=9, most=3) == [[5, 6], [1, 2, 3]]
    assert beginnings(ids, end=0, documents=1, most=3) == [[5, 6]]


def test_tokens_without_a_document_to_halve_are_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("krakenlm.inference.samples.beginnings", lambda *_: [])
    with pytest.raises(InputError, match="expected a document of two tokens or more"):
        write_samples(*trained, tmp_path / "samples.json")


def test_the_runs_of_samples_and_shards_show_what_the_workspace_has_panels_for(trained, tmp_path, monkeypatch):
    shown = {}

    class Run:
        def table(self, name, rows):
            shown[name] = rows

        def summary(self, values):
            shown.update(values)

        def read(self, path):
            pass

        def wrote(self, path, kind):
            pass

    monkeypatch.setattr(tracking, "start_run", lambda *words, **options: contextlib.nullcontext(Run()))
    monkeypatch.setattr(exclusive, "TIMING_LOCK", tmp_path / "timing")
    (model, _), tokens = trained
    commands.samples([model], tokens, tmp_path / "samples.json")
    commands.shard(tmp_path / "shards", 2, model)
    assert shown.pop("samples") == read_json(tmp_path / "samples.json")["samples"]
    sizes = [(tmp_path / "shards" / f"rank{rank}.safetensors").stat().st_size for rank in (0, 1)]
    assert shown == {"shards/ranks": 2, "shards/largest_file_bytes": max(sizes)}
    bars = {metric for panels in BARS.values() for metrics in panels.values() for metric in metrics}
    assert set(shown) <= bars
