"""A description that is measured here: what is made of measurements, and small ones of every kind."""

import itertools
from types import SimpleNamespace

import pytest

from krakenlm.errors import InputError
from krakenlm.inference.collectives import run_threads
from krakenlm.latency import calibrate, hardware, kernels
from krakenlm.latency.simulate import Overlap, play
from krakenlm.latency.trace import Operation, Trace, Wait
from krakenlm.models.collectives import ALONE


def run(products, summed, factors, wait_at_once=False):
    """Seconds of products beside a sum, played."""
    collective = Operation("all_reduce", "all_reduce", (1,), "float32", 0, 4, ranks=range(2))
    product = Operation("linear", "product", (1, 1, 1, 1), "float32", 2, 12)
    trace = Trace((collective, product, Wait(0)), world=2, element_bytes=4, weights=0, kv_cache=0, activations=0)
    return play(trace, lambda each: summed if each is collective else products, factors).seconds


@pytest.mark.parametrize(
    "factors", [Overlap(1, 1), Overlap(1.5, 1), Overlap(1, 1.8), Overlap(1.1, 3), Overlap(1.3, 1.6)]
)
def test_how_much_the_streams_slow_each_other_is_found_from_runs_of_both(factors):
    samples = [
        [40 * s, 10 * s, run(40 * s, 10 * s, factors), 5 * s, 10 * s, run(5 * s, 10 * s, factors)]
        for s in (1e-4, 1e-3, 1e-2)
    ]
    found = calibrate.overlap(samples)
    assert found.compute == pytest.approx(factors.compute)
    assert found.communication == pytest.approx(factors.communication)


def test_streams_that_share_one_core_wholly_are_described_within_bounds():
    found = calibrate.overlap([[4, 1, 5.2, 0.5, 1, 1.6]])
    assert 1 <= found.compute < 100
    assert 1 <= found.communication < 100


def measured(ranks):
    """As two ranks would have measured it: twice as slow together, sums at 1 GB/s behind 10 us."""
    times = 1.0 if ranks == 1 else 2.0
    sizes = (1024, 65536)
    found = {
        "product": [[m, n, 64, times * (1e-6 + 1e-9 * m * n)] for m in (1, 64) for n in (64, 512)],
        "attention_prefill": [[1, t, 2, 32, times * 1e-6 * t] for t in (16, 64)],
        "attention_decode": [[1, t, 2, 32, times * 1e-7 * t] for t in (16, 64)],
        **{name: [[b, times * (1e-6 + 1e-9 * b)] for b in sizes] for name in ("norm", "gelu", "pointwise", "copy")},
        "tiny": 5e-3,
    }
    if ranks > 1:
        for name in ("all_reduce", "all_gather"):
            found[name] = [[ranks, b, 1e-5 + 1e-9 * b] for b in sizes]
        found["overlap"] = [[4.0, 1.0, 4.5, 0.5, 1.0, 1.0]]
    return found


def described(tmp_path, ranks):
    all_measured = {count: measured(count) for count in sorted({1, ranks})}
    about, tables = calibrate.tables_of(all_measured, "float32", "made up")
    kernels.write_tables(tmp_path / "kernels.json", about, tables)
    keys = calibrate.description(all_measured, about, tables, "made up", "float32", "made up")
    hardware.write(tmp_path / "made-up.yaml", {**keys, "kernels": "kernels.json"}, "Made up.")
    return hardware.load(tmp_path / "made-up.yaml")


def test_a_description_takes_as_long_as_was_measured_by_as_many_ranks(tmp_path):
    found = described(tmp_path, 2)
    product = Operation(
        "linear", "product", (1, 64, 512, 64), "float32", 2 * 64 * 512 * 64, 4 * (64 * 64 + 64 * 512 * 2)
    )
    for ranks, times in ((1, 1), (2, 2)):
        expected = times * (1e-6 + 1e-9 * 64 * 512)
        assert found.kernel_seconds(product, ranks) == pytest.approx(expected, rel=0.01)
        assert found.seconds(product, ranks) == pytest.approx(expected + found.dispatch, rel=0.01)
    gelu = Operation("gelu", "pointwise", (8192,), "float32", 0, 65536)
    assert found.kernel_seconds(gelu, 2) == pytest.approx(2 * (1e-6 + 1e-9 * 65536), rel=0.01)
    summed = Operation("all_reduce", "all_reduce", (16384,), "float32", 0, 65536, ranks=range(2))
    assert found.seconds(summed, 2) == pytest.approx(1e-5 + 1e-9 * 65536, rel=0.01)
    assert found.overlap.compute == pytest.approx(2, rel=0.01)
    assert 0 < found.dispatch < 5e-3


def test_one_rank_alone_has_no_link(tmp_path):
    found = described(tmp_path, 1)
    assert (found.devices, found.inside, found.overlap) == (1, None, Overlap())


@pytest.fixture
def small_grid(monkeypatch):
    for name, value in {
        "ROWS": (1, 16), "WIDTHS": (32, 64), "HEAD": 128, "CONTEXTS": (8, 16), "HEADS": (2,), "HEAD_SIZES": (16,),
        "BYTES": [4096, 16384], "MESSAGES": [64, 4096], "OVERLAPPED": [4096], "LEAST_SECONDS": 0.0,
        "OVERLAP_SECONDS": 0.0, "RUN": 2, "RUNS": (1, 1),
        "REPETITIONS": (3, 3), "BEHIND_WIDTH": 32, "BEHIND_ROWS": 4, "POOL_BYTES": 2**20,
    }.items():  # fmt: skip
        monkeypatch.setattr(calibrate, name, value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_kernel_on_the_grid_is_measured(small_grid, ranks):
    found = calibrate.measure(ALONE, "cpu", "loopback", "float32") if ranks == 1 else measure_in_threads()
    sizes = {
        "product": 10,
        "attention_prefill": 2,
        "attention_decode": 2,
        "norm": 2,
        "gelu": 2,
        "pointwise": 2,
        "copy": 2,
    }
    if ranks == 2:
        sizes |= {"all_reduce": 2, "all_gather": 2}
    for name, points in sizes.items():
        assert len(found[name]) == points, name
        assert all(len(point) == 1 + len(calibrate.AXES[name]) for point in found[name])
        assert all(point[-1] > 0 for point in found[name])
    assert found["tiny"] > 0
    assert ("overlap" in found) == (ranks == 2)


def measure_in_threads():
    return run_threads(2, lambda comm: calibrate.measure(comm, "cpu", "loopback", "float32"))[0]


def test_a_kernel_reads_weights_that_no_recent_one_has_read(small_grid):
    bench = calibrate.Bench(ALONE, "cpu", calibrate.torch.float32)
    first, second = bench.weight(64, 64), bench.weight(64, 64)
    assert first.data_ptr() != second.data_ptr()
    assert {bench.weight(64, 64).data_ptr() for _ in range(62)} | {first.data_ptr(), second.data_ptr()} == {
        bench.weight(64, 64).data_ptr() for _ in range(64)
    }


def test_a_collective_takes_what_ranks_wait_for_it_whatever_the_products_before_it_take(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(calibrate, "RUN", 3)
    monkeypatch.setattr(calibrate, "RUNS", (5, 5))
    noise, waits = itertools.cycle([1.0, 9.0, 0.1, 30.0]), itertools.cycle([1.0, 1.0, 4.0])

    def passing(seconds):
        clock.now += next(seconds)

    bench = calibrate.Bench(ALONE, "cpu", calibrate.torch.float32)
    assert bench.waited(lambda: passing(noise), lambda: passing(waits)) == pytest.approx(2.0)


@pytest.mark.parametrize("longer", [0.0, -1e-6])
def test_a_collective_that_seems_to_take_no_time_is_refused_not_replaced(small_grid, monkeypatch, longer):
    bench = calibrate.Bench(ALONE, "cpu", calibrate.torch.float32)
    times = iter([1e-3 + longer, 1e-3])
    monkeypatch.setattr(bench, "on_gpu", True)
    monkeypatch.setattr(bench, "mean", lambda function: next(times))
    with pytest.raises(InputError, match="--ranks: expected all_reduce of 4096 bytes to take time, found none"):
        bench.collective("all_reduce", 4096)


def test_the_slowest_tenth_of_the_calls_does_not_count():
    assert calibrate.steady([2.0, 4.0, 90.0]) == 3
    assert calibrate.steady([1.0] * 18 + [50.0, 60.0]) == 1
    assert calibrate.steady([5.0]) == 5
