"""Advice: equal parameters, the order, memory, intervals, what quality costs."""

import copy
import csv
import dataclasses
import math
from pathlib import Path

import pytest

from krakenlm.errors import InputError
from krakenlm.latency import advise, hardware, sweep
from krakenlm.latency.hardware import Overlap
from krakenlm.latency.kernels import HeldOut
from krakenlm.models.sizing import SHAPES, parameter_count, standard_shape

HARDWARE = Path(__file__).parents[2] / "config" / "hardware"
LENGTHS = {"vocab_size": 50304, "block_size": 2048}


def advised(name="h100", **changes):
    settings = {
        "hardware": str(HARDWARE / f"{name}.yaml"), "parameters": 2e9, "context": 512, "batch": 1, "tp": [2, 4],
        "vocab_size": 50304, "heads": "head_size", "dtype": "float16", "perplexity_csv": None, "out_csv": None,
    }  # fmt: skip
    return advise.advise(**(settings | changes))


@pytest.fixture(scope="module")
def rows():
    return advised()


def test_every_model_has_the_parameters_that_were_asked_for_as_nearly_as_its_heads_allow(rows):
    models = {(row["architecture"], row["degree"], row["tp"]) for row in rows}
    others = {(name, "", tp) for name in ("standard", "standard-chunked", "parallel", "ladder") for tp in (2, 4)}
    assert models == others | {("kraken", degree, tp) for degree in (2, 4) for tp in (2, 4)}
    for row in rows:
        assert row["parameters"] == pytest.approx(2e9, rel=0.02)


def test_the_soonest_first_token_is_first_and_each_row_has_its_place_by_time_per_token(rows):
    assert [row["ttft_ms"] for row in rows] == sorted(row["ttft_ms"] for row in rows)
    by_token = sorted(rows, key=lambda row: row["token_rank"])
    assert [row["token_rank"] for row in by_token] == list(range(1, len(rows) + 1))
    assert [row["token_ms"] for row in by_token] == sorted(row["token_ms"] for row in rows)


def test_a_row_takes_what_the_simulator_predicts_for_its_model(rows):
    place = hardware.load(HARDWARE / "h100.yaml")
    for row in rows[:3]:
        keys = ("architecture", "width", "n_head", "n_layer") + (("degree",) if row["degree"] else ())
        sizes = {key: row[key] for key in keys} | {"vocab_size": 50304, "block_size": 32768}
        if row["architecture"] == "standard-chunked":
            continue
        model = sweep.Model(row["architecture"], sizes)
        for name, new_tokens, cached in (("ttft_ms", 512, 0), ("token_ms", 1, 512)):
            trace = model.trace(
                row["tp"], batch=1, new_tokens=new_tokens, cached=cached, dtype="float16", engine="tensorrt-llm"
            )
            assert row[name] == pytest.approx(1e3 * sweep.timeline_of(trace, place).seconds)


def test_speedups_are_over_standard_on_as_many_ranks(rows):
    standard = {row["tp"]: row["ttft_ms"] for row in rows if row["architecture"] == "standard"}
    for row in rows:
        assert row["ttft_speedup_vs_standard"] == pytest.approx(standard[row["tp"]] / row["ttft_ms"])


def test_krakens_cache_is_the_larger_one_and_memory_grows_with_it(rows):
    kraken, standard = (
        next(row for row in rows if (row["architecture"], row["degree"], row["tp"]) == key)
        for key in (("kraken", 4, 4), ("standard", "", 4))
    )
    grown = [row["memory_gb_32768"] - row["memory_gb_2048"] for row in (kraken, standard)]
    assert grown[0] > 1.5 * grown[1]
    for row in rows:
        assert row["memory_gb_2048"] < row["memory_gb_8192"] < row["memory_gb_32768"]
        assert row["memory_gb_2048"] > 2 * row["parameters"] / row["tp"] / 1e9


def one_model_each(monkeypatch):
    """Of each number of ranks standard alone."""
    whole = advise.equal_models
    monkeypatch.setattr(advise, "equal_models", lambda *arguments: whole(*arguments)[:1])


def test_what_has_no_room_comes_last_and_says_so(monkeypatch):
    one_model_each(monkeypatch)
    rows = advised("l40s", parameters=70e9, tp=[2, 4], context=64)
    assert [row["fits"] for row in rows] == [True, False]
    assert {row["tp"]: row["fits"] for row in rows} == {4: True, 2: False}
    assert "too much" in advise.lines(rows)[-1]


def test_ranks_are_powers_of_two_up_to_a_machines_devices_unless_given(monkeypatch):
    one_model_each(monkeypatch)
    assert sorted(row["tp"] for row in advised(tp=[], context=64)) == [1, 2, 4, 8]


@pytest.mark.parametrize(("tp", "heads"), [([3], "head_size"), ([3], "head_count"), ([6, 4], "head_count")])
def test_standard_is_sized_so_that_it_divides_over_any_ranks(tp, heads):
    rows = advised(tp=tp, heads=heads, context=64)
    assert {row["tp"] for row in rows if row["architecture"] == "standard"} == set(tp)
    assert all(row["ttft_speedup_vs_standard"] for row in rows)


def test_only_models_near_the_parameters_are_ranked_and_one_line_names_the_others(capsys):
    rows = advised(parameters=3.5e8, tp=[2, 4], context=64)
    assert {row["degree"] for row in rows} == {"", 2}
    assert all(abs(row["parameters"] / 3.5e8 - 1) <= 0.05 for row in rows)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("advise: left out, more than 5% off --params 3.5e+08: kraken 4-way (0.33B); ")
    assert {row["degree"] for row in advised(parameters=3.5e8, tp=[2, 4], context=64, heads="head_count")} == {"", 2, 4}


def test_parameters_that_no_model_comes_near_are_refused_with_what_there_is(monkeypatch):
    one_model_each(monkeypatch)
    with pytest.raises(InputError, match=r"parameters: expected .* within 5% of, found 2.2e\+07, .* standard \(0\.0"):
        advised(parameters=2.2e7, vocab_size=1000, tp=[2], context=64)


def test_the_prediction_lies_in_its_interval(rows):
    for row in rows:
        for name in ("ttft", "token"):
            assert row[f"{name}_ms_low"] < row[f"{name}_ms"] < row[f"{name}_ms_high"]
            assert row[f"{name}_ms_high"] < 2 * row[f"{name}_ms_low"]


def small_kraken(place):
    """A trace that takes no time to play."""
    sizes = {"architecture": "kraken", "degree": 4, "n_layer": 2, "width": 512, "n_head": 16, "vocab_size": 512,
             "block_size": 128}  # fmt: skip
    return sweep.Model("kraken", sizes).trace(
        4, batch=1, new_tokens=128, cached=0, dtype="float16", engine=place.engine
    )


def test_the_interval_knows_that_sums_beside_products_are_off_as_their_tables_are():
    place = hardware.load(HARDWARE / "h100.yaml")
    tables = dict(place.tables) | dict.fromkeys((hardware.BESIDE, hardware.TAKEN), place.tables["all_reduce"])
    place = dataclasses.replace(place, tables=tables)
    trace = small_kraken(place)
    collective = next(each for each in trace.operations if each.kind == "all_reduce")
    alone = place.collective_seconds(collective)
    off = {"all_reduce": 2.0, hardware.BESIDE: 6.0, hardware.TAKEN: 0.5}
    expected = Overlap.of(2 * alone, 6 * alone, 0.5 * alone)
    assert place.overlap_of(collective, off).compute == pytest.approx(expected.compute)
    assert place.overlap_of(collective, off).communication == pytest.approx(expected.communication)
    # Nothing else is in doubt.
    for name in tables:
        error = 0.5 if name == hardware.BESIDE else 0.0
        tables[name] = copy.copy(tables[name])
        tables[name].held_out = HeldOut(points=9, median=0.0, low=-error, high=error)
    low, high = advise.interval(trace, place)
    assert low < high


def test_tables_without_errors_leave_nothing_to_doubt():
    place = hardware.load(HARDWARE / "h100.yaml")
    trace = small_kraken(place)
    low, high = advise.interval(trace, place)
    for table in place.tables.values():
        table.held_out = HeldOut(points=9, median=0.0, low=0.0, high=0.0)
    expected = sweep.timeline_of(trace, place).seconds
    assert low < expected < high
    assert advise.interval(trace, place) == pytest.approx((expected, expected))


def test_draws_have_the_held_out_quantiles_of_measured_over_predicted_time():
    generator = advise.random.Random(1)
    held_out = HeldOut(points=9, median=0.1, low=-0.2, high=0.5)
    draws = sorted(advise.factor(held_out, generator) for _ in range(20_001))
    assert draws[1000] == pytest.approx(1 / 1.5, rel=0.03)
    assert draws[10_000] == pytest.approx(1, abs=0.01)
    assert draws[19_000] == pytest.approx(1 / 0.8, rel=0.03)


@pytest.mark.parametrize("size", SHAPES)
def test_the_shape_of_a_papers_size_has_its_width_and_about_its_layers(size):
    parameters = parameter_count({"architecture": "standard", **SHAPES[size], **LENGTHS})
    shape = standard_shape(parameters, **LENGTHS)
    assert shape["width"] == SHAPES[size]["width"]
    assert abs(shape["n_layer"] - SHAPES[size]["n_layer"]) <= 1


@pytest.mark.parametrize("parameters", [1e8, 7e8, 2e9, 3e10, 4e11])
def test_a_shape_has_nearly_the_parameters_asked_for_and_heads_for_eight_ranks(parameters):
    shape = standard_shape(parameters, **LENGTHS)
    found = parameter_count({"architecture": "standard", **shape, **LENGTHS})
    assert found == pytest.approx(parameters, rel=0.5 / shape["n_layer"] + 0.001)
    assert shape["n_head"] % 8 == 0
    assert shape["width"] % shape["n_head"] == 0


def test_too_few_parameters_are_refused():
    with pytest.raises(InputError, match=r"parameters: expected at least .*, one layer of width 512 .*, found 1e\+06"):
        standard_shape(1e6, **LENGTHS)


def trained(path, *rows):
    common = {"data": "text", "protocol": "whole validation set", "degree": "", "seed": 0, "tokens_seen": 9}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["model", "architecture", "parameters", "loss", *common])
        writer.writeheader()
        writer.writerows(common | row for row in rows)
    return path


def test_what_a_trained_model_costs_in_perplexity_stands_beside_its_time(tmp_path):
    path = trained(
        tmp_path / "perplexity.csv",
        {"model": "standard", "architecture": "standard", "parameters": 100, "loss": 2.0},
        {"model": "standard", "architecture": "standard", "parameters": 100, "loss": 2.2, "seed": 1},
        {"model": "standard", "architecture": "standard", "parameters": 900, "loss": 1.0},
        {"model": "kraken-2way", "architecture": "kraken", "parameters": 98, "loss": 2.3, "degree": 2},
        {"model": "kraken-2way", "architecture": "kraken", "parameters": 98, "loss": 9.0, "degree": 2, "data": "other"},
        {"model": "ladder", "architecture": "ladder", "parameters": 300, "loss": 1.0},
    )
    rows = advised(context=64, tp=[2], perplexity_csv=path)
    cost = {(row["architecture"], row["degree"]): row["perplexity_vs_standard"] for row in rows}
    assert cost["kraken", 2] == pytest.approx(math.exp(2.3 - 2.1))
    assert cost["standard", ""] == cost["standard-chunked", ""] == 1
    assert cost["ladder", ""] == cost["parallel", ""] == ""
    kraken = next(row for row in rows if row["architecture"] == "kraken")
    assert kraken["perplexity_from"] == "kraken-2way, 9.8e-05M parameters, text, 1 seed(s)"
    assert f"perplexity over standard's: {kraken['perplexity_from']}" in advise.lines(rows)[-2:]


def test_a_table_of_perplexities_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="perplexity_csv: expected a table, found no file"):
        advise.read_perplexities(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_text("model,loss\nx,1\n")
    with pytest.raises(InputError, match=r"bad.csv: expected a column architecture, found none"):
        advise.read_perplexities(tmp_path / "bad.csv")


def test_the_advice_is_written_as_a_table(tmp_path):
    rows = advised(context=64, tp=[2], out_csv=tmp_path / "advice.csv")
    with open(tmp_path / "advice.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == advise.COLUMNS
    assert [float(row["ttft_ms"]) for row in written] == [row["ttft_ms"] for row in rows]
