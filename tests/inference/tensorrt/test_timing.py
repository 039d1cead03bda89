"""Engines of the stand-in, timed by the entry point: what the tables say, and what is refused."""

import argparse
import csv
import importlib
import json

import pytest
import torch
from tensorrt_cases import SIZES, write_model

from krakenlm.errors import InputError
from krakenlm.files import write_json
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.shards import write_shards
from krakenlm.inference.tensorrt import build
from krakenlm.latency import engines as torch_engines
from krakenlm.latency import tensorrt, ttft
from krakenlm.models.sizing import kv_bytes_per_token
from krakenlm.text.store import TokenStore

TTFT = {"contexts": [4, 8], "batch": 2, "runs": 4, "most_runs": 4, "precision": 0.01, "warmup": 1, "seed": 0}
ENGINES = {"prompts": 2, "prompt_tokens": 6, "new_tokens": 5, "runs": 3, "warmup": 1}


@pytest.fixture
def build_for(standin, tmp_path, monkeypatch):
    """Build engines of a model; the timing lock is this test's own."""
    monkeypatch.setattr(tensorrt, "TIMING_LOCK", tmp_path / "timing.lock")
    monkeypatch.setattr(tensorrt.machine, "device", lambda: "a machine")

    def call(name, tp, dtype="float32"):
        write_model(tmp_path / name, SIZES[name])
        write_json(tmp_path / name / "metrics.json", {"seed": 5})
        write_shards(tmp_path / name, tmp_path / f"{name}-shards", tp)
        build.build_engines(tmp_path / f"{name}-shards", tmp_path / f"{name}-tp{tp}", dtype, build.Limits(2, 8, 5))
        return tmp_path / f"{name}-tp{tp}"

    return call


def under_mpirun(tp, stage, **options):
    """The stage on every rank, as mpirun starts it."""
    importlib.import_module("mpi4py.MPI")
    importlib.import_module("tensorrt_llm.runtime")
    importlib.import_module("krakenlm.inference.tensorrt.definitions")

    def body(comm):
        from tensorrt_llm.functional import on_rank

        with on_rank(comm):
            stage(argparse.Namespace(scale="tiny", run="somewhere", **options))

    run_threads(tp, body)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_ttft_has_a_row_for_every_engine_and_context_in_the_columns_of_the_pytorch_engine(build_for, tmp_path):
    names = ["standard", "kraken-2way"]
    folders = [build_for(name, 2, "float16") for name in names]
    options = {"engines": folders, "settings": json.dumps(TTFT), "out": tmp_path / "ttft.csv", "size": "small"}
    under_mpirun(2, tensorrt.ttft, **options)
    rows = read(tmp_path / "ttft.csv")
    assert list(rows[0]) == ttft.COLUMNS
    assert [(row["architecture"], row["context"]) for row in rows] == [
        ("standard", "4"), ("kraken", "4"), ("standard", "8"), ("kraken", "8")
    ]  # fmt: skip
    for row, name in zip(rows, names * 2, strict=True):
        assert (row["engine"], row["tp"], row["runs"], row["batch"]) == ("tensorrt_llm", "2", "4", "2")
        assert (row["size"], row["dtype"], row["scale"], row["run"]) == ("small", "float16", "tiny", "somewhere")
        # Heads of 6 and of 12 are padded to 32.
        padded = 32 / 6 if name == "standard" else 32 / 12
        assert int(row["kv_bytes_per_token"]) == round(padded * kv_bytes_per_token(SIZES[name], 2))
        assert float(row["ttft_ms_median"]) > 0
    assert float(rows[0]["speedup_vs_standard"]) == 1


@pytest.mark.parametrize("name", ["ladder", "kraken-2way"])
def test_an_engine_generates_the_whole_models_tokens_and_says_so(build_for, tmp_path, monkeypatch, name):
    folder = build_for(name, 2)
    tokens = torch.randint(96, (60,), generator=torch.Generator().manual_seed(2)).numpy()
    monkeypatch.setattr(TokenStore, "__init__", lambda self, directory: None)
    monkeypatch.setattr(TokenStore, "manifest", {"data": "drawn"}, raising=False)
    monkeypatch.setattr(TokenStore, "tokens", lambda self, split: tokens)
    options = {"engine": folder, "model": tmp_path / name, "name": name, "tokens": tmp_path}
    under_mpirun(2, tensorrt.engine, settings=json.dumps(ENGINES), out=tmp_path / "engines.csv", **options)
    [row] = read(tmp_path / "engines.csv")
    assert list(row) == torch_engines.COLUMNS
    assert row["identical"] == "True"
    assert (row["model"], row["engine"], row["tp"], row["seed"], row["data"]) == (
        name,
        "tensorrt_llm",
        "2",
        "5",
        "drawn",
    )
    assert float(row["tokens_per_second"]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "expected engines for mpirun's 1 ranks, found them for 2; use -n 2"),
        ({"contexts": [9]}, "expected engines for 2 prompts of 9 tokens and 1 new ones, found them for 2 of 8 and 5"),
        ({"batch": 3}, "expected engines for 3 prompts of 8 tokens"),
    ],
)
def test_engines_that_do_not_fit_the_runs_are_refused(build_for, tmp_path, change, message):
    folder = build_for("kraken-2way", 2)
    options = {"engines": [folder], "settings": json.dumps(TTFT | change), "out": tmp_path / "ttft.csv", "size": ""}
    with pytest.raises(InputError, match=message):
        under_mpirun(2 if change else 1, tensorrt.ttft, **options)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ('{"batch": 1}', "contexts: expected a value")])
def test_settings_that_are_missing_are_named(text, message):
    with pytest.raises(InputError, match=message):
        tensorrt.read_settings(text, tensorrt.TTFT_SETTINGS)
