"""What is said of timings, and a small measurement over two real ranks."""

import csv
import weakref

import numpy as np
import pytest
import torch

from krakenlm.errors import InputError
from krakenlm.latency import statistics, ttft
from krakenlm.latency.simulate import PARTS
from krakenlm.latency.turns import interleave
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.collectives import ALONE
from krakenlm.models.sizing import sizes_of


def test_a_summary_says_what_the_runs_were():
    row = statistics.summarise([10, 11, 12, 13, 100])
    assert row["ttft_ms_median"] == 12
    assert row["ttft_ms_mean"] == pytest.approx(29.2)
    assert row["ttft_ms_std"] == pytest.approx(np.std([10, 11, 12, 13, 100], ddof=1))
    assert row["ci_low"] <= 12 <= row["ci_high"]


def test_a_row_that_got_slower_is_flagged():
    assert statistics.summarise([10, 10, 10, 12, 12, 12])["drifted"]
    assert not statistics.summarise([10, 10.4, 10, 10.4, 10, 10.4])["drifted"]


def test_a_speedup_of_interleaved_runs_has_the_interval_of_their_ratio():
    noise = np.random.default_rng(0).normal(1, 0.1, 40)  # both are disturbed by the same
    ratio, low, high = statistics.speedup(20 * noise, 10 * noise)
    assert ratio == pytest.approx(2)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)


def test_more_ranks_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    refuse_missing_ranks("tp", 2, 1, gpus=0)
    with pytest.raises(InputError, match="tp: expected tp x threads within this machine's 2 cores, found 2 x 2"):
        refuse_missing_ranks("tp", 2, 2, gpus=0)


def test_runs_are_precise_once_every_speedups_interval_is_narrow():
    even, uneven = [10.0] * 20, [9.0, 11.0] * 10
    assert statistics.precise(even, [even, [5.0] * 20], precision=0.01)
    assert not statistics.precise(even, [even, uneven], precision=0.05)
    assert statistics.precise(even, [even, uneven], precision=0.25)


def test_every_row_is_timed_on_its_own_architecture_and_chunks_share_their_weights():
    names = ["standard", "standard-chunked", "parallel", "ladder", "kraken"]
    sizes = {"n_layer": 2, "vocab_size": 64, "block_size": 16}
    timed = [
        {"name": name, "chunks": ttft.CHUNKS.get(name, 1), "sizes": sizes | sizes_of(ttft.built_as(name), 32, 4, 1)}
        for name in names
    ]
    modules = dict(
        zip(
            names, ttft.random_modules(timed, timed[0]["sizes"]["n_layer"], ALONE, "cpu", torch.float32, 0), strict=True
        )
    )
    found = {name: module.config.architecture for name, module in modules.items()}
    assert found == {name: ttft.built_as(name) for name in names}
    standard, chunked = modules["standard"], modules["standard-chunked"]
    assert (standard.chunks, chunked.chunks) == (1, 2)
    assert standard.embedding.tokens is chunked.embedding.tokens


def test_runs_go_on_until_the_first_rank_has_enough():
    taken = interleave([lambda: None, lambda: None], ALONE, "cpu", 2, lambda taken: len(taken[0]) == 7)
    assert [len(each) for each in taken] == [7, 7]


@pytest.mark.skipif(len(__import__("os").sched_getaffinity(0)) < 2, reason="two ranks want two cores")
def test_two_ranks_are_timed_at_every_context(tmp_path):
    rows = ttft.measure_ttft(
        size="small",
        tp=2,
        out_csv=tmp_path / "ttft.csv",
        breakdown_csv=tmp_path / "ttft_breakdown.csv",
        scale="tiny",
        run="here",
        links=["loopback"],
        architectures=["standard", "standard-chunked", "kraken"],
        vocab_size=128,
        contexts=[8, 16],
        batch=1,
        runs=10,
        most_runs=12,
        precision=1e-9,
        warmup=1,
        profiled_runs=1,
        dtype="float32",
        threads=1,
        seed=0,
        n_layer=2,
        width=32,
        n_head=4,
    )
    with open(tmp_path / "ttft.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ttft.COLUMNS
    assert [(row["architecture"], row["context"]) for row in table] == [
        (architecture, context)
        for context in ("8", "16")
        for architecture in ("standard", "standard-chunked", "kraken")
    ]
    for row, written in zip(rows, table, strict=True):
        assert float(written["ttft_ms_median"]) == pytest.approx(row["ttft_ms_median"], rel=1e-5)
        assert float(written["link_gbit_measured"]) > 0
        assert written["link"] == "gloo over loopback"
        assert written["runs"] == "12"
        assert written["degree"] == ("2" if row["architecture"] == "kraken" else "")
        assert row["tpot_ms_median"] > 0
        assert row["memory_gb"] > 0
        assert row["longest_context"] > 16
        assert written["cuda_graph"] == "False"
    assert float(table[0]["speedup_vs_standard"]) == 1
    with open(tmp_path / "ttft_breakdown.csv", newline="") as file:
        parts = list(csv.DictReader(file))
    assert list(parts[0]) == ttft.BREAKDOWN_COLUMNS
    assert [row["architecture"] for row in parts] == [row["architecture"] for row in table]
    for row in parts:
        together = sum(float(row[f"{part}_ms"]) for part in PARTS if part != "all_reduce_hidden")
        assert together == pytest.approx(float(row["prefill_ms"]))


@torch.inference_mode()
def test_caches_of_one_context_are_gone_when_the_next_is_timed(monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Request(ttft.Request):
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **options)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(ttft, "Request", Request)
    sizes = {"n_layer": 2, "vocab_size": 64, "block_size": 16} | sizes_of("standard", 32, 4, 1)
    runs = {"runs": 1, "most_runs": 1, "precision": 1.0, "warmup": 0, "profiled_runs": 1}
    settings = {"layers": 2, "contexts": [4, 8, 16], "batch": 1, "dtype": "float32", "seed": 0} | runs
    timed = [{"name": "standard", "chunks": 1, "sizes": sizes}]
    assert len(list(ttft.time_on_rank(ALONE, "cpu", "loopback", timed, **settings))) == 1 + 3 + 3
    assert most == [1] * 6
