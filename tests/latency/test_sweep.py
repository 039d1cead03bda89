"""The simulated table: its cells, its rows, and the timeline of one of them."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from krakenlm.errors import InputError
from krakenlm.latency import hardware, sweep, ttft
from krakenlm.latency.memory import memory_of
from krakenlm.latency.simulate import PARTS
from krakenlm.models.sizing import parameter_count, sizes_of

HARDWARE = Path(__file__).parents[2] / "config" / "hardware"
SHAPE = {"n_layer": 8, "width": 1024, "n_head": 16}
LENGTHS = {"vocab_size": 512, "block_size": 256}
ARCHITECTURES = ["standard", "standard-chunked", "parallel", "ladder", "kraken"]


def simulate(folder, **changes):
    settings = {
        "hardware": [str(HARDWARE / "h100.yaml"), str(HARDWARE / "l40s.yaml")], "architectures": ARCHITECTURES,
        "sizes": {"small": SHAPE}, "vocab_size": 512, "tp": [1, 8, 16], "contexts": [64, 256], "batches": [1, 2],
        "degrees": [4], "heads": "head_size", "dtype": "float16",
    }  # fmt: skip
    files = {"out_csv": folder / "ttft_simulated.csv", "layers_csv": folder / "layers.csv"}
    return sweep.simulate_grid(**files, scale="tiny", run="here", **(settings | changes))


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder)
    return folder


def test_every_cell_has_every_architecture_and_degree_once(folder):
    table = read(folder / "ttft_simulated.csv")
    keys = [
        tuple(row[key] for key in ("hardware", "tp", "context", "batch", "architecture", "degree")) for row in table
    ]
    # The 10 heads of each of 4 splits do not divide over 4 ranks.
    degrees = {1: ("2", "4"), 8: ("4", "8"), 16: ("16",)}
    expected = {
        (hardware, str(tp), context, batch, architecture, degree)
        for hardware in ("h100", "l40s")
        for tp, krakens in degrees.items()
        for context in ("64", "256")
        for batch in ("1", "2")
        for architecture in ARCHITECTURES
        if tp > 1 or architecture != "standard-chunked"
        for degree in (krakens if architecture == "kraken" else ("",))
    }
    assert len(keys) == len(set(keys))
    assert set(keys) == expected


def test_a_row_says_what_it_is_and_its_parts_add_up(folder):
    table = read(folder / "ttft_simulated.csv")
    assert list(table[0])[: len(ttft.COLUMNS)] == ttft.COLUMNS
    for row in table:
        parts = {part: float(row[f"{part}_ms"]) for part in PARTS}
        del parts["all_reduce_hidden"]
        assert sum(parts.values()) == pytest.approx(float(row["ttft_ms_median"]))
        assert (row["source"], row["runs"], row["fits"]) == ("simulated", "", "True")
        if row["architecture"] == "standard":
            assert float(row["speedup_vs_standard"]) == 1
            assert int(row["parameters"]) == parameter_count({"architecture": "standard", **SHAPE, **LENGTHS})


def test_speedups_are_over_standard_in_the_same_cell(folder):
    table = read(folder / "ttft_simulated.csv")
    cells = {}
    for row in table:
        cells.setdefault(tuple(row[key] for key in ("hardware", "tp", "context", "batch")), []).append(row)
    for rows in cells.values():
        (standard,) = (float(row["ttft_ms_median"]) for row in rows if row["architecture"] == "standard")
        for row in rows:
            assert float(row["speedup_vs_standard"]) == pytest.approx(standard / float(row["ttft_ms_median"]))


def test_chunks_hide_communication_of_the_same_model(folder):
    table = read(folder / "ttft_simulated.csv")
    eight = {row["architecture"]: row for row in table if (row["hardware"], row["tp"]) == ("l40s", "8")}
    assert float(eight["standard"]["all_reduce_hidden_ms"]) == 0
    assert float(eight["standard-chunked"]["all_reduce_hidden_ms"]) > 0
    assert eight["standard-chunked"]["parameters"] == eight["standard"]["parameters"]
    assert {row["all_reduce_exposed_ms"] for row in table if row["tp"] == "1"} == {"0.0"}


def test_a_layers_events_are_those_of_each_usual_model_from_0_on(folder):
    layers = read(folder / "layers.csv")
    assert {row["degree"] for row in layers} == {"", "8"}
    assert {row["architecture"] for row in layers} == set(ARCHITECTURES)
    for architecture in ARCHITECTURES:
        rows = [row for row in layers if (row["hardware"], row["context"], row["architecture"])
                == ("h100", "256", architecture)]  # fmt: skip
        assert min(float(row["start_us"]) for row in rows) == 0
        assert {row["stream"] for row in rows} == {"compute", "communication"}
        assert {"norm", "gemm", "attention", "all_reduce"} <= {row["part"] for row in rows}


def test_models_without_room_are_said_to_have_none(tmp_path):
    rows = simulate(tmp_path, sizes={"large": {"n_layer": 96, "width": 12288, "n_head": 96}}, tp=[2], batches=[1])
    assert {row["fits"] for row in rows} == {False}
    # Half of 175 billion parameters of two bytes; what Kraken's rounded width takes off is less than 1%.
    assert min(row["memory_gb"] for row in rows) > 173


@pytest.mark.parametrize("engine", hardware.ENGINES[1:])
def test_memory_means_the_same_simulated_and_measured_and_what_fits_leaves_room_for_the_runtime(engine):
    place = dataclasses.replace(hardware.load(HARDWARE / "h100.yaml"), peak={"float32": 6e13}, tables={})
    sizes = sizes_of("kraken", SHAPE["width"], SHAPE["n_head"], 4) | {"n_layer": SHAPE["n_layer"]} | LENGTHS
    model = sweep.Model("kraken", sizes, 1)  # two splits a rank, which are joined by copies where they are packed
    traced = model.trace(2, batch=1, new_tokens=256, cached=0, dtype="float32", engine=engine)
    run = sweep.Run(model, traced, sweep.timeline_of(traced, place))
    needed = memory_of(sizes, 1, 2, batch=1, context=256, dtype="float32", engine=engine).at(256)
    for reserved, fits in ((0.0, True), (place.memory - needed - 1e3, True), (place.memory - needed + 1e3, False)):
        row = sweep.row_of(run, dataclasses.replace(place, reserved=reserved))
        assert row["memory_gb"] == pytest.approx(needed / 1e9)
        assert row["fits"] == fits


def test_a_krakens_heads_follow_the_rule(tmp_path):
    krakens = {
        heads: next(
            row for row in simulate(tmp_path, heads=heads, tp=[4], batches=[1]) if row["architecture"] == "kraken"
        )
        for heads in ("head_size", "head_count")
    }
    assert krakens["head_count"]["n_head"] == SHAPE["n_head"]
    assert krakens["head_size"]["width"] / (krakens["head_size"]["n_head"] / 4) == 64


def test_a_grid_that_no_machine_has_devices_for_is_refused(tmp_path):
    text = (HARDWARE / "h100.yaml").read_text()
    start, end = text.index("between:"), text.index("overlap:")
    (tmp_path / "alone.yaml").write_text(text[:start] + text[end:].replace("kernels/", f"{HARDWARE}/kernels/"))
    with pytest.raises(InputError, match=r"tp: expected one at least that .*alone.yaml has devices for, found .16"):
        simulate(tmp_path, hardware=[str(tmp_path / "alone.yaml")], tp=[16])


def test_a_timeline_that_no_number_of_ranks_can_have_says_so(tmp_path):
    place = tmp_path / "one.yaml"
    described = yaml.safe_load((HARDWARE / "h100.yaml").read_text())
    described["devices"]["value"] = 1
    described["kernels"] = str((HARDWARE / described["kernels"]).resolve())
    del described["between"]
    place.write_text(yaml.safe_dump(described))
    with pytest.raises(InputError, match=r"^tp: .* standard-chunked can be divided over on one \(none\), found 1"):
        sweep.write_timeline(
            tmp_path / "trace.json", hardware=str(place), architecture="standard-chunked", shape=SHAPE, tp=1,
            context=128, batch=1, decode=False, degree=None, vocab_size=512, dtype="float16",
        )  # fmt: skip


@pytest.mark.parametrize("decode", [False, True])
def test_a_timeline_is_written_for_a_browser(tmp_path, decode):
    out = tmp_path / "trace.json"
    parts = sweep.write_timeline(
        out, hardware=str(HARDWARE / "h100.yaml"), architecture="kraken", shape=SHAPE, tp=8, context=128, batch=2,
        decode=decode, degree=None, vocab_size=512, dtype="float16",
    )  # fmt: skip
    events = [event for event in json.loads(out.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {event["tid"] for event in events} == {0, 1}
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(1e3 * parts["in all"])
    assert sum(event["cat"] == "attention" for event in events) == SHAPE["n_layer"]
    attention = next(event for event in events if event["cat"] == "attention")
    assert attention["args"]["shape"][2:4] == ([1, 129] if decode else [128, 128])
    assert math.isclose(sum(parts.values()), 2 * parts["in all"] + parts["all_reduce_hidden"])


def test_ranks_of_a_kraken_are_named_up_to_its_own_heads(tmp_path):
    with pytest.raises(InputError, match=r"^tp: .* kraken can be divided over \(1, 2, 4, .*, 28\), found 3"):
        sweep.write_timeline(
            tmp_path / "trace.json", hardware=str(HARDWARE / "h100.yaml"), architecture="kraken", shape=SHAPE, tp=3,
            context=128, batch=1, decode=False, degree=2, vocab_size=512, dtype="float16",
        )  # fmt: skip


def test_a_timeline_of_ranks_that_a_model_does_not_divide_over_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"^tp: expected ranks that standard can be divided over \(1, 2, 4, 8, 16\), found 3"
    ):
        sweep.write_timeline(
            tmp_path / "trace.json", hardware=str(HARDWARE / "h100.yaml"), architecture="standard", shape=SHAPE, tp=3,
            context=128, batch=1, decode=False, degree=None, vocab_size=512, dtype="float16",
        )  # fmt: skip
