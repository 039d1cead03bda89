"""Where a prefill's time goes: labels, spans, and a profile over two real ranks."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from krakenlm.inference.cache import Cache
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import random_rank
from krakenlm.latency.breakdown import WHOLE, Labels, deepened, parts_of, profiled, start_profiler, union, without
from krakenlm.latency.simulate import PARTS
from krakenlm.models import config_from_dict
from krakenlm.models.blocks import LAST

SMALL = {"n_layer": 3, "n_head": 4, "width": 32, "vocab_size": 64, "block_size": 64}


def event(name, start, end, on_gpu=False):
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=kind)


def test_spans_that_meet_are_joined_and_what_others_cover_is_taken_away():
    assert union([(4, 6), (0, 2), (1, 3), (6, 7)]) == [(0, 3), (4, 7)]
    assert without([(0, 10)], [(2, 3), (5, 12)]) == [(0, 2), (3, 5)]
    assert without([(0, 1)], [(0, 2)]) == []


def test_on_a_cpu_exposed_is_what_the_forward_waits_and_the_rest_of_a_collective_is_hidden():
    events = [
        event("krakenlm.whole", 0, 1000),
        event("krakenlm.norm", 0, 100),
        event("krakenlm.gemm", 100, 500),
        event("gloo:all_reduce", 300, 700),
        event("krakenlm.wait.all_reduce", 600, 720),
        event("krakenlm.attention", 500, 600),
        event("krakenlm.lm_head", 720, 800),
        event("gloo:all_gather", 800, 900),
        event("krakenlm.wait.lm_head", 800, 900),
        event("aten::mm", 100, 500),
    ]
    parts = {part: round(1e6 * seconds) for part, seconds in parts_of(events, on_gpu=False).items()}
    assert parts == {
        WHOLE: 1000, "norm": 100, "gemm": 200, "gemm_overlapped": 200, "attention": 100, "lm_head": 180,
        "other": 100, "all_reduce_exposed": 120, "all_reduce_hidden": 300,
    }  # fmt: skip


def test_on_a_gpu_exposed_is_what_of_a_collective_runs_beside_no_other_kernel():
    events = [
        event("krakenlm.whole", 0, 1000),
        event("krakenlm.gemm", 0, 5),  # where it was launched
        event("krakenlm.gemm", 100, 500, on_gpu=True),
        event("sm80_xmma_gemm", 100, 500, on_gpu=True),
        event("nccl:all_reduce", 300, 700, on_gpu=True),
        event("ncclDevKernel_AllReduce_Sum_f16_RING_LL(x)", 300, 700, on_gpu=True),
        event("krakenlm.attention", 500, 600, on_gpu=True),
        event("flash_fwd_kernel", 500, 600, on_gpu=True),
    ]
    parts = {part: round(1e6 * seconds) for part, seconds in parts_of(events, on_gpu=True).items()}
    assert parts["gemm"] == 200
    assert parts["gemm_overlapped"] == 200
    assert parts["all_reduce_hidden"] == 300
    assert parts["all_reduce_exposed"] == 100
    assert parts["other"] == 1000 - 400 - 100 - 100


def test_parts_that_run_at_once_count_once_and_add_up_to_the_whole():
    events = [
        event("krakenlm.whole", 0, 1000),
        event("krakenlm.norm", -50, 100, on_gpu=True),
        event("krakenlm.gemm", 50, 700, on_gpu=True),
        event("krakenlm.attention", 600, 1100, on_gpu=True),
        event("nccl:all_reduce", 0, 5),
        event("ncclDevKernel_AllReduce_Sum_f16_RING_LL(x)", 650, 990, on_gpu=True),
    ]
    parts = parts_of(events, on_gpu=True)
    assert sum(parts[part] for part in PARTS if part != "all_reduce_hidden") == pytest.approx(parts[WHOLE])


def test_a_collective_between_two_kernels_of_one_label_is_exposed():
    events = [
        event("krakenlm.whole", 0, 1000),
        event("krakenlm.gemm", 0, 100, on_gpu=True),
        event("splitk_gemm", 0, 30, on_gpu=True),
        event("splitk_reduce", 70, 100, on_gpu=True),
        event("ncclDevKernel_AllReduce_Sum_f16_RING_LL(x)", 0, 100, on_gpu=True),
    ]
    parts = {part: round(1e6 * seconds) for part, seconds in parts_of(events, on_gpu=True).items()}
    assert parts["all_reduce_exposed"] == 40
    assert parts["all_reduce_hidden"] == 60
    assert parts["gemm"] + parts["gemm_overlapped"] == 60
    assert parts["other"] == 900


def test_with_fewer_layers_measured_the_whole_is_scaled_by_its_own_time_per_layer_and_its_parts_add_up_to_it():
    few = dict.fromkeys(PARTS, 2.0) | {WHOLE: 16.0, "norm": 4.0}
    deep = dict.fromkeys(PARTS, 6.0) | {WHOLE: 39.0, "norm": 3.0}  # noise: less with more layers
    scaled = deepened(deep, few, layers=6, n_layer=12)
    assert scaled["gemm"] == 6 + 6 * 1
    assert scaled[WHOLE] == 39 + 6 * (39 - 16) / 4
    assert sum(scaled[part] for part in PARTS if part != "all_reduce_hidden") == pytest.approx(scaled[WHOLE])
    assert deepened(deep, few, layers=12, n_layer=12) == deep


@pytest.mark.parametrize("architecture", ["standard", "parallel", "ladder", "kraken"])
def test_every_product_attention_and_norm_of_a_forward_has_a_label(architecture):
    sizes = {"architecture": architecture, **SMALL} | ({"degree": 2} if architecture == "kraken" else {})
    module = random_rank(config_from_dict(sizes), 0, 1, 0, "cpu", torch.float32)
    found = []

    class Listening(Labels):
        def part_of(self, name, args):
            found.append((name, super().part_of(name, args)))
            return found[-1][1]

    with Listening(module):
        module(torch.arange(8)[None], at=LAST)
    parts = [part for _, part in found]
    assert parts.count("lm_head") == 1
    assert parts.count("attention") == 3
    norms = 1 if architecture == "parallel" else 2
    assert parts.count("norm") == 3 * norms + 1
    assert parts.count("gemm") >= 3 * (2 if architecture == "parallel" else 4)
    assert {part for name, part in found if name in ("linear", "bmm", "matmul")} == {"gemm", "lm_head"}


def profile_on_rank(comm, device):
    sizes = {"architecture": "kraken", "degree": 2, **SMALL}
    module = random_rank(config_from_dict(sizes), comm.rank, comm.world, 0, device, torch.float32)
    cache = Cache(module, 1, 32)

    def prefill(comm):
        cache.rewind()
        module(torch.arange(32)[None], comm, cache, at=LAST)

    start_profiler(device)
    return profiled(prefill, module, comm, device, runs=2)


def test_the_parts_of_two_ranks_prefill_add_up_to_the_whole(importable):
    parts = run_ranks(f"{importable}:profile_on_rank", {}, world=2, threads=1)
    assert set(parts) == {WHOLE, *PARTS}
    assert sum(parts[part] for part in PARTS if part != "all_reduce_hidden") == pytest.approx(parts[WHOLE])
    for part in ("norm", "attention", "lm_head", "other", "all_reduce_exposed"):
        assert parts[part] > 0
    assert parts["gemm"] + parts["gemm_overlapped"] > 0
