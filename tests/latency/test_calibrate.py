"""A description that is measured here: what is made of measurements, and small ones of every kind."""

import itertools
from types import SimpleNamespace

import pytest

from krakenlm.errors import InputError
from krakenlm.inference.collectives import Work, run_threads
from krakenlm.latency import bench, calibrate, hardware, kernels
from krakenlm.latency.simulate import Overlap, play
from krakenlm.latency.trace import Operation, Trace, Wait
from krakenlm.models import products
from krakenlm.models.collectives import ALONE, Done

KERNELS = ("product", "attention_prefill", "attention_decode", "norm", "gelu", "pointwise", "copy")


def run(products, summed, factors, wait_at_once=False):
    """Seconds of products beside a sum, played."""
    collective = Operation("all_reduce", "all_reduce", (1,), "float32", 0, 4, ranks=range(2))
    product = Operation("linear", "product", (1, 1, 1, 1), "float32", 2, 12)
    trace = Trace((collective, product, Wait(0)), world=2, element_bytes=4, weights=0, kv_cache=0, activations=0)
    return play(trace, lambda each: summed if each is collective else products, lambda _: factors).seconds


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
        "bare": dict.fromkeys(KERNELS, 2e-6),
    }
    if ranks > 1:
        for name in ("all_reduce", "all_gather"):
            found[name] = [[ranks, b, 1e-5 + 1e-9 * b] for b in sizes]
        found["all_reduce_beside"] = [[ranks, b, 4e-5 + 4e-9 * b] for b in sizes]
        found["all_reduce_taken"] = [[ranks, b, 1e-5 + 1e-9 * b] for b in sizes]
        found["skew"] = 0.05
    return found


def described(tmp_path, ranks):
    all_measured = {count: measured(count) for count in sorted({1, ranks})}
    about, tables = calibrate.tables_of(all_measured, "float32", "made up")
    kernels.write_tables(tmp_path / "kernels.json", about, tables)
    keys = {"title": "made up", "engine": "torch"} | calibrate.description(all_measured, about, "float32", "made up")
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
    # Beside compute four times as long as alone, of which compute loses one.
    for factors in (found.overlap, found.overlap_of(summed)):
        assert factors.compute == pytest.approx(4 / 3, rel=0.01)
        assert factors.communication == pytest.approx(4, rel=0.01)
    assert found.skew == 0.05
    count = len(calibrate.trace(calibrate.models.config_from_dict(bench.TINY), batch=1, new_tokens=8).operations)
    assert found.dispatch == pytest.approx(5e-3 / count - 2e-6, rel=0.01)


def test_kernels_that_took_longer_alone_than_in_a_forward_are_said(capsys):
    bare = dict.fromkeys(KERNELS, 3e-6)
    assert calibrate.dispatch(0.0, bare, "float32") == 0
    assert capsys.readouterr().err == "calibrate: dispatch: -3.00 us an operation were measured, and are taken as 0\n"


def test_a_gpus_factors_are_the_same_for_every_size():
    found = calibrate.factors_of({"overlap": [[4.0, 1.0, 4.5, 0.5, 1.0, 1.0]]})
    assert found.compute == pytest.approx(2)


def test_one_rank_alone_has_no_link(tmp_path):
    found = described(tmp_path, 1)
    assert (found.devices, found.inside, found.overlap, found.skew) == (1, None, Overlap(), 0)


@pytest.fixture
def small_grid(monkeypatch):
    for name, value in {
        "ROWS": (1, 16), "WIDTHS": (32, 64), "HEAD": 128, "CONTEXTS": (8, 16), "HEADS": (2,), "HEAD_SIZES": (16,),
        "BYTES": [4096, 16384], "MESSAGES": [64, 4096], "BESIDE": [4096], "LEAST_SECONDS": 0.0,
        "RUN": 2, "RUNS": (1, 1), "BESIDE_RUNS": 2, "SKEW_SUMS": 2, "SKEW_RUNS": 1, "SKEW_PRODUCTS": (1, 3),
        "SMALL_ROWS": 1, "LAYER": 2,
        "REPETITIONS": (3, 3), "BEHIND_WIDTH": 32, "BEHIND_ROWS": 4, "POOL_BYTES": 2**20,
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_kernel_on_the_grid_is_measured(small_grid, ranks, monkeypatch):
    # Of a single run of two sums noise may well hide a size, which has its own test: here how many runs there were.
    monkeypatch.setattr(bench, "beyond_noise", len)
    monkeypatch.setattr(products, "PACKED", 64 * 64)
    packed = []
    monkeypatch.setattr(
        bench, "pack_weight", lambda weight: packed.append(weight.shape) or products.pack_weight(weight)
    )
    found = bench.measure(ALONE, "cpu", "loopback", "float32") if ranks == 1 else measure_in_threads()
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
        sizes |= {"all_reduce": 2, "all_gather": 2, "all_reduce_beside": 1, "all_reduce_taken": 1}
    for name, points in sizes.items():
        assert len(found[name]) == points, name
        assert all(len(point) == 1 + len(calibrate.AXES[name]) for point in found[name])
        assert all(point[-1] > 0 for point in found[name])
    assert found["tiny"] > 0
    assert all(seconds > 0 for seconds in found["bare"].values())
    assert ("skew" in found) == (ranks == 2)
    assert set(packed) == {(64, 64)}  # not (32, 64), nor a head, which has as many numbers and more


def measure_in_threads():
    return run_threads(2, lambda comm: bench.measure(comm, "cpu", "loopback", "float32"))[0]


def test_light_kernels_and_attention_run_behind_packed_products(small_grid, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 32 * 32)
    timed = bench.Bench(ALONE, "cpu", bench.torch.float32)
    made, product = [], bench.packed_product
    monkeypatch.setattr(bench, "packed_product", lambda *given: made.append(1) or product(*given))
    runs = 1 + 1 + bench.REPETITIONS[0]  # the first, the one that says how long it takes, and what is timed
    for part, timed_kernels in ((timed.moving, 4 * len(bench.BYTES)), (timed.attention, 2 * len(bench.CONTEXTS))):
        made.clear()
        part()
        assert len(made) == bench.LAYER * runs * timed_kernels


def test_a_kernel_reads_weights_that_no_recent_one_has_read(small_grid):
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    addresses = [timer.weight(64, 64).data_ptr() for _ in range(200)]  # the pool holds 64 of them
    assert all(len(set(addresses[start : start + 63])) == 63 for start in range(len(addresses) - 62))


class Clock:
    """Stands still but for what is said to pass."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def pass_seconds(self, seconds):
        self.now += seconds


def test_a_collective_takes_the_median_over_runs_of_the_means_of_what_ranks_wait_for_it(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(bench, "RUN", 3)
    monkeypatch.setattr(bench, "RUNS", (5, 5))
    usual, interrupted = [1.0, 1.0, 4.0], [1.0, 1.0, 100.0]
    waits = itertools.chain(usual, usual, interrupted, usual, interrupted, usual)
    noise = itertools.cycle([1.0, 9.0, 0.1, 30.0])
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    found = timer.stood_still(lambda: clock.pass_seconds(next(noise)), lambda: clock.pass_seconds(next(waits)), skew=0)
    # A median of waits would be 1, a mean of runs 14.8.
    assert bench.beyond_noise(found) == pytest.approx(2.0)


def test_what_ranks_wait_for_each_other_is_not_the_collectives_time(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(bench, "RUNS", (1, 1))
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    found = timer.stood_still(lambda: clock.pass_seconds(3.0), lambda: clock.pass_seconds(2.0), skew=0.25)
    assert found == [pytest.approx(1.25)]


def test_skew_is_what_ranks_wait_longer_after_many_products_than_after_few(small_grid, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(bench, "SKEW_RUNS", 5)
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    products = 0
    interrupted = itertools.chain([50.0], itertools.repeat(0.0))

    def product(*_):
        nonlocal products
        products += 1
        clock.pass_seconds(1.0)

    def barrier(*_):
        # Two seconds of its own, a tenth of what was computed since the last one, and once something else.
        nonlocal products
        clock.pass_seconds(2.0 + 0.1 * products + next(interrupted))
        products = 0

    monkeypatch.setattr(bench.F, "linear", product)
    monkeypatch.setattr(bench, "wait_for_ranks", barrier)
    assert timer.skew()["skew"] == pytest.approx(0.1)


class Sum:
    """A sum that takes so many seconds of the clock beside products."""

    def __init__(self, clock, seconds):
        self.clock, self.end = clock, clock.now + seconds

    def done(self):
        return self.clock.now >= self.end

    def wait(self):
        self.clock.now = max(self.clock.now, self.end)
        return bench.torch.zeros(1)


def test_a_sum_beside_products_takes_as_long_as_products_run_until_it_has_ended(small_grid, monkeypatch):
    clock = Clock(monkeypatch)
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    under_way = []

    def all_reduce(x, group=None):
        if x.numel() == 1:  # of the bench itself
            return Done(x)
        under_way.append(Sum(clock, 7.0))
        return under_way[-1]

    def small_product():
        # Half as long again beside a sum.
        clock.pass_seconds(1.0 if not under_way or under_way[-1].done() else 1.5)

    monkeypatch.setattr(timer, "comm", SimpleNamespace(rank=0, world=1, all_reduce=all_reduce))
    monkeypatch.setattr(timer, "small_product", small_product)
    # Five products of 1.5 s outlast the sum's 7 s; alone they take 5 s.
    assert timer.sum_beside(4096) == pytest.approx((7.5, 2.5))


def test_a_collective_of_torch_distributed_is_done_when_its_work_is():
    asked = iter([False, False, True])
    work = Work(SimpleNamespace(is_completed=lambda: next(asked), wait=lambda: None), lambda: 5)
    assert [work.done(), work.done(), work.done()] == [False, False, True]
    assert work.wait() == 5


def on_gpu(timer, monkeypatch, longer):
    """A GPU's timer, of which products take 1 ms, and with a collective so much longer, measurement by measurement."""
    times = itertools.chain.from_iterable((1e-3 + each, 1e-3) for each in longer)
    monkeypatch.setattr(timer, "on_gpu", True)
    monkeypatch.setattr(timer, "mean", lambda function: next(times))


def test_of_a_gpus_differences_the_middle_one_counts(small_grid, monkeypatch):
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    on_gpu(timer, monkeypatch, [1e-6, 9e-5, 2e-5])
    assert timer.collective("all_reduce", 4096, skew=0.0) == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("seconds", "expected"), [([3.0, 1.0, 2.0], 2.0), ([-1.0, 1.0, 2.0], 0.0), ([-1.0, 1.0, 2.0, 9.0], 1.5)]
)
def test_a_time_that_some_measurements_did_not_find_is_noise(seconds, expected):
    assert bench.beyond_noise(seconds) == expected


def test_a_collective_that_noise_has_hidden_is_left_out(small_grid, monkeypatch, capsys):
    timer = bench.Bench(ALONE, "cpu", bench.torch.float32)
    on_gpu(timer, monkeypatch, [-1e-6] * 3 + [2e-5] * 9)
    found = timer.collectives(skew=0.0)
    assert found == {
        "all_reduce": [[1, 4096, pytest.approx(2e-5)]],
        "all_gather": [[1, 64, pytest.approx(2e-5)], [1, 4096, pytest.approx(2e-5)]],
    }
    monkeypatch.setattr(calibrate, "MESSAGES", bench.MESSAGES)
    calibrate.refuse_no_collectives({1: {}, 2: found})
    assert capsys.readouterr().err == "calibrate: all_reduce of 64 bytes took no more than noise; left out\n"
    with pytest.raises(InputError, match="calibrate: expected all_gather to take time behind products, found none"):
        calibrate.refuse_no_collectives({1: {}, 2: found | {"all_gather": []}})
    # How sums and products slow each other is held against the time of a sum alone.
    beside = {"all_reduce_beside": [[2, 64, 1.0]]}
    with pytest.raises(InputError, match="calibrate: expected all_reduce to take time behind products, found none"):
        calibrate.refuse_no_collectives({1: {}, 2: found | beside})


def test_calls_that_something_else_has_interrupted_do_not_count():
    assert bench.steady([2.0, 4.0, 90.0]) == 3
    assert bench.steady([1.0] * 18 + [50.0, 60.0]) == 1
    assert bench.steady([1.0, 1.0, 1.6]) == pytest.approx(1.2)
    assert bench.steady([5.0]) == 5
