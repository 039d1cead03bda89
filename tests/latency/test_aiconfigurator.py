"""A hardware description from a folder laid out like a clone of aiconfigurator, with made-up times."""

import itertools

import pyarrow
import pytest
from pyarrow import parquet

from krakenlm.errors import InputError
from krakenlm.latency import hardware
from krakenlm.latency.aiconfigurator import ordered, write_system

SYSTEM = """
data_dir: data/x1
gpu: {mem_bw: 2000000000000, mem_capacity: 80000000000, bfloat16_tc_flops: 300000000000000,
      mem_bw_empirical_scaling_factor: 0.8, mem_empirical_constant_latency: 0.000003}
node: {num_gpus_per_node: 8, inter_node_bw: 25000000000, intra_node_bw: 300000000000, p2p_latency: 0.00001}
misc: {nccl_mem: {8: 400000000}, other_mem: 3600000000}
"""
DEVICE = {"framework": "TRTLLM", "device": "X1", "op_name": ""}


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([DEVICE | row for row in rows]), file)


def gemm(slower=1):
    shapes = list(itertools.product((1, 64, 4096), (64, 1024), (64, 1024)))
    rows = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": slower * factor * (5e-3 + 1e-8 * m * n * k / 1e3)}
        for m, n, k in shapes
        for dtype, factor in (("bfloat16", 1), ("fp8", 0.5))
    ]
    return [*rows, {"gemm_dtype": "bfloat16", "m": 0, "n": 64, "k": 64, "latency": 1e-9}]


def attention(decode):
    common = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "head_dim": 128, "window_size": 0}
    grid = itertools.product((1, 8), (127, 2047) if decode else (128, 2048), (8, 32))
    rows = [
        common
        | {"batch_size": b, "isl": 1 if decode else t, "step": t if decode else 0, "num_heads": h}
        | {"num_key_value_heads": h, "latency": 0.01 + 1e-9 * b * t * h * (1 if decode else t)}
        for b, t, h in grid
    ]
    # Grouped heads, another type of cache, a window: none of them is what our engines compute.
    return rows + [row | {key: value, "latency": 99.0} for row in rows[:1] for key, value in (
        ("num_key_value_heads", 1), ("kv_cache_dtype", "fp8"), ("window_size", 128),
    )]  # fmt: skip


def collective(key):
    return [
        {"op_name": name, key: "half", "num_gpus": n, "message_size": size, "latency": 0.004 + 1e-9 * n * size}
        for name in ("all_reduce", "all_gather")
        for n in (2, 8)
        for size in (512, 8192)
    ]


@pytest.fixture
def clone(tmp_path):
    data = tmp_path / "clone" / "src" / "systems" / "data" / "x1"
    write(data / "gemm/trtllm/1.0.0/gemm_perf.parquet", gemm(slower=2))
    write(data / "gemm/trtllm/1.2.0rc5/gemm_perf.parquet", gemm())
    write(data / "attention/trtllm/1.0.0/context_attention_perf.parquet", attention(False))
    write(data / "attention/trtllm/1.0.0/generation_attention_perf.parquet", attention(True))
    write(data / "comm/trtllm/1.0.0/custom_allreduce_perf.parquet", collective("allreduce_dtype"))
    write(data / "comm/nccl/2.27.3/nccl_perf.parquet", collective("nccl_dtype"))
    (data.parent.parent / "x1.yaml").write_text(SYSTEM)
    return tmp_path / "clone"


def test_a_systems_numbers_and_kernels_become_a_description(clone, tmp_path):
    write_system(clone, "x1", tmp_path / "x1.yaml")
    found = hardware.load(tmp_path / "x1.yaml")
    assert (found.title, found.engine, found.devices) == ("8 x X1", "tensorrt-llm", 8)
    assert (found.memory, found.bandwidth, found.peak["float16"]) == (8e10, 1.6e12, 3e14)
    assert found.reserved == 4e9
    product, decode = found.tables["product"], found.tables["attention_decode"]
    assert product.axes == {"m": [1, 64, 4096], "n": [64, 1024], "k": [64, 1024]}
    assert product.seconds[0] == pytest.approx(5e-6, rel=0.01)
    assert max(decode.seconds) < 1e-3
    assert decode.axes["context"] == [128, 2048]
    assert found.tables["all_reduce"].axes["bytes"] == [1024, 16384]
    assert found.inside.latency == pytest.approx(2e-6, rel=0.01)


def test_a_version_that_is_named_is_the_one_read(clone, tmp_path):
    write_system(clone, "x1", tmp_path / "x1.yaml", version="1.0.0")
    assert hardware.load(tmp_path / "x1.yaml").tables["product"].seconds[0] == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(InputError, match=r"expected trtllm's gemm_perf of version 9, found none"):
        write_system(clone, "x1", tmp_path / "x1.yaml", version="9")


def test_a_release_is_newer_than_its_candidates():
    assert sorted(["1.2.0", "1.10.0", "1.2.0rc20", "1.2.0rc5"], key=ordered) == [
        "1.2.0rc5", "1.2.0rc20", "1.2.0", "1.10.0",
    ]  # fmt: skip


def test_what_a_clone_lacks_is_named(clone, tmp_path):
    with pytest.raises(InputError, match=r"system: expected one of those in .*\(x1\), found 'y2'"):
        write_system(clone, "y2", tmp_path / "y2.yaml")
    with pytest.raises(InputError, match=r"none: no clone of aiconfigurator"):
        write_system(tmp_path / "elsewhere", "x1", tmp_path / "x1.yaml")


@pytest.mark.parametrize(("found", "message"), [("2 TB/s", "expected a number, found '2 TB/s'"), ("", "found none")])
def test_a_number_that_is_none_is_named(clone, tmp_path, found, message):
    (file,) = clone.rglob("x1.yaml")
    file.write_text(SYSTEM.replace("mem_bw: 2000000000000", f"mem_bw: {found}"))
    with pytest.raises(InputError, match=rf"x1.yaml: gpu.mem_bw: .*{message}"):
        write_system(clone, "x1", tmp_path / "x1.yaml")


def test_a_file_that_was_not_fetched_says_so(clone, tmp_path):
    for file in clone.rglob("nccl_perf.parquet"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"nccl_perf.parquet: expected a table, found a pointer to it; run git lfs"):
        write_system(clone, "x1", tmp_path / "x1.yaml")
    for file in clone.rglob("nccl_perf.parquet"):
        file.write_text("no table")
    with pytest.raises(InputError, match=r"nccl_perf.parquet: expected a table, found a damaged file"):
        write_system(clone, "x1", tmp_path / "x1.yaml")
