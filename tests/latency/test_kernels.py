"""Interpolation between measured points, and how its error is known."""

import itertools

import pytest

from krakenlm.errors import InputError
from krakenlm.latency import kernels
from krakenlm.latency.kernels import Roofline, Table, smallest_table


def model(m, n):
    return 1e-6 + 1e-9 * m * n


def test_a_table_goes_through_its_points_and_follows_the_model_between_and_beyond():
    axes = {"m": [1, 100], "n": [10, 1000]}
    table = Table(axes, [2 * model(m, n) for m in (1, 100) for n in (10, 1000)], model)
    for m, n in itertools.product((0.5, 1, 7, 100, 9999), (10, 31, 1000)):
        assert table.ratio(m=m, n=n) == pytest.approx(2)


def test_ratios_are_interpolated_over_the_logarithms_of_the_shape():
    table = Table({"m": [1, 100]}, [1 * 2.0, 100 * 8.0], lambda m: m)
    assert table.ratio(m=10) == pytest.approx(4)
    assert table.ratio(m=100**0.25) == pytest.approx(2 * 4**0.25)


def test_a_point_that_was_not_measured_is_as_the_nearest_that_was():
    table = Table({"m": [1, 2], "n": [1, 8]}, [3.0, 30.0, None, 20.0], lambda m, n: 1.0)
    assert table.ratio(m=2, n=1) == pytest.approx(3)


def test_axes_that_a_table_lacks_do_not_matter():
    assert Table({"m": [1]}, [5.0], lambda m: 1.0).ratio(m=3, busy=2) == pytest.approx(5)


def test_the_coarsest_grid_that_is_good_enough_is_kept(monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 1)
    values = [2**k for k in range(17)]
    smooth = {(m,): (m**0.1) * m for m in values}
    table = smallest_table(smooth, ["m"], lambda m: m)
    assert table.axes["m"] == [1, 8, 64, 512, 4096, 65536]
    assert (table.held_out.points, table.held_out.median) == (11, pytest.approx(0, abs=1e-9))


def test_the_axis_is_made_finer_along_which_the_times_are_rough(monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 1)
    values = [2**k for k in range(9)]
    rough = {(m, n): m * n * (3 if 8 <= n <= 32 else 1) for m in values for n in values}
    table = smallest_table(rough, ["m", "n"], lambda m, n: m * n)
    assert len(table.axes["m"]) <= 3 < len(table.axes["n"])
    assert table.held_out.median <= kernels.GOOD_ENOUGH


def test_a_small_table_keeps_every_point_and_the_error_of_half_of_them():
    points = {(m, n): float(m * n * (1 if k % 2 else 1.5)) for k, m in enumerate((1, 2, 4, 8, 16)) for n in (1, 9)}
    table = smallest_table(points, ["m", "n"], lambda m, n: m * n)
    assert table.axes == {"m": [1, 2, 4, 8, 16], "n": [1, 9]}
    assert table.seconds == list(points.values())
    # Of the longest axis 2 and 8 are left out; the other axis keeps its values.
    assert (table.held_out.points, table.held_out.median) == (4, pytest.approx(0.5))


def test_errors_are_those_of_the_points_left_out():
    table = Table({"m": [1, 4]}, [1.0, 1.0], lambda m: 1.0)
    held_out = kernels.errors(table, {(2,): 0.8, (3,): 1.25}, lambda m: 1.0)
    assert held_out.points == 2
    assert held_out.median == pytest.approx((0.25 + 0.2) / 2)
    assert -0.2 < held_out.low < held_out.high < 0.25


def test_tables_are_read_as_they_were_written(tmp_path):
    table = smallest_table({(m, n): 2 * model(m, n) for m in (1, 2) for n in (4, 8)}, ["m", "n"], model)
    kernels.write_tables(tmp_path / "tables.json", {"source": "here"}, {"product": table})
    about, tables = kernels.read_tables(tmp_path / "tables.json", lambda about: {"product": model})
    assert about == {"source": "here"}
    assert tables["product"].axes == table.axes
    assert tables["product"].ratio(m=1.5, n=5) == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(
    "text", ["{}", '{"tables": {"product": {"axes": {"m": [1]}, "us": [1, 2], "held_out": null}}}']
)
def test_a_damaged_file_of_tables_is_named(tmp_path, text):
    (tmp_path / "tables.json").write_text(text)
    with pytest.raises(InputError, match=r"tables.json: expected tables of kernels' times, found a damaged file"):
        kernels.read_tables(tmp_path / "tables.json", lambda about: {"product": lambda m: 1.0})


def test_a_roofline_is_the_slower_of_arithmetic_and_memory_behind_a_launch():
    roofline = Roofline(flops=100, bytes=10, launch=1)
    assert roofline.seconds(200, 10) == 3
    assert roofline.seconds(200, 40) == 5
