"""What is timed and profiled on a GPU, and the description that is made of one."""

import csv

import pytest
import torch

from krakenlm.latency import ttft
from krakenlm.latency.breakdown import WHOLE
from krakenlm.latency.calibrate import calibrate
from krakenlm.latency.hardware import load
from krakenlm.latency.simulate import PARTS
from krakenlm.models.collectives import ALONE
from krakenlm.models.sizing import sizes_of

ARCHITECTURES = ["standard", "parallel", "ladder", "kraken"]
COMPUTED = ("gemm", "attention", "norm", "lm_head")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_architecture_is_timed_from_a_cuda_graph_and_profiled(tmp_path):
    ttft.measure_ttft(
        size="small",
        tp=1,
        out_csv=tmp_path / "ttft.csv",
        breakdown_csv=tmp_path / "ttft_breakdown.csv",
        scale="tiny",
        run="here",
        links=["loopback"],
        architectures=["standard-chunked", *ARCHITECTURES],
        vocab_size=300,
        contexts=[16, 130],
        batch=2,
        runs=5,
        most_runs=8,
        precision=0.05,
        warmup=1,
        profiled_runs=2,
        dtype="float16",
        threads=1,
        seed=0,
        n_layer=3,
        width=90,
        n_head=6,
    )
    rows = rows_of(tmp_path / "ttft.csv")
    assert [(row["architecture"], row["context"]) for row in rows] == [
        (architecture, context) for context in ("16", "130") for architecture in ARCHITECTURES
    ]
    for row in rows:
        assert row["cuda_graph"] == "True", row
        assert float(row["ttft_ms_median"]) > 0, row
        assert float(row["tpot_ms_median"]) > 0, row
        assert float(row["speedup_vs_standard"]) > 0, row
        assert row["link"] == "none", row
    for row in rows_of(tmp_path / "ttft_breakdown.csv"):
        for part in COMPUTED:
            assert float(row[f"{part}_ms"]) > 0, (part, row)
        together = sum(float(row[f"{part}_ms"]) for part in PARTS if part != "all_reduce_hidden")
        assert together == pytest.approx(float(row["prefill_ms"])), row


@torch.inference_mode()
def test_a_prompt_in_chunks_and_models_of_fewer_layers_are_timed_and_profiled():
    shape = {"n_layer": 6, "vocab_size": 300, "block_size": 130}
    timed = [
        {"name": name, "chunks": ttft.CHUNKS.get(name, 1), "sizes": sizes_of(ttft.built_as(name), 96, 6, 1) | shape}
        for name in ("standard", "standard-chunked", "kraken")
    ]
    runs = {"runs": 3, "most_runs": 3, "precision": 1.0, "warmup": 1, "profiled_runs": 1}
    settings = {"layers": 4, "contexts": [130], "batch": 1, "dtype": "float16", "seed": 0} | runs
    link, times, parts = ttft.time_on_rank(ALONE, "cuda:0", "loopback", timed, **settings)
    assert link == {"link": "none", "link_gbit": None}
    assert [len(each) for each in times["milliseconds"]] == [3, 3, 3]
    assert [len(each) for each in times["per_token"]] == [3, 3, 3]
    assert times["machine"]["cuda_graph"] is True
    for each, found in zip(timed, parts["parts"], strict=True):
        assert found[WHOLE] > 0, (each["name"], found)
        for part in ("gemm", "attention"):
            assert found[part] > 0, (each["name"], found)


@pytest.mark.slow
def test_this_machine_is_described(tmp_path):
    calibrate(tmp_path / "this-machine.yaml", ranks=1, threads=1, link="loopback", dtype="float16")
    machine = load(tmp_path / "this-machine.yaml")
    print((tmp_path / "this-machine.yaml").read_text())
    assert machine.devices == 1
