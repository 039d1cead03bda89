"""Hardware files: read with a clear word on every mistake; the times that follow from them."""

import copy
import math
import random
from pathlib import Path

import pytest
import yaml

from krakenlm.errors import InputError
from krakenlm.latency import hardware
from krakenlm.latency.hardware import BESIDE, TAKEN, Hardware, Link, quantity
from krakenlm.latency.kernels import Table
from krakenlm.latency.simulate import Overlap, play
from krakenlm.latency.trace import Operation, trace
from krakenlm.models import ARCHITECTURES, config_from_dict
from krakenlm.models.sizing import prefill_flops, sizes_of

SHIPPED = sorted((Path(__file__).parents[2] / "config" / "hardware").glob("*.yaml"))


def machine(**changes):
    described = {
        "name": "made up", "title": "made up", "engine": "torch", "devices": 4, "memory": 1e9, "reserved": 0.0,
        "bandwidth": 1e9, "peak": {"float16": 1e12}, "launch": 1e-6, "dispatch": 0.0, "inside": Link(1e9, 1e-6),
        "between": Link(1e8, 1e-5), "overlap": Overlap(),
    }  # fmt: skip
    return Hardware(**(described | changes))


def collective(kind, ranks, moved):
    return Operation(kind, kind, (1,), "float16", 0, moved, ranks=ranks)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_description_in_the_project_is_read(path):
    found = hardware.load(path)
    assert found.name == path.stem
    assert set(found.tables) == {"product", "attention_prefill", "attention_decode", "all_reduce", "all_gather"}
    for name, table in found.tables.items():
        assert table.held_out.median < 0.10, name


def described():
    source = "made up"
    return {
        "title": "made up",
        "engine": "torch",
        "devices": quantity(2, "devices", source),
        "memory": quantity(8, "GB", source),
        "reserved": quantity(0, "GB", source),
        "memory_bandwidth": quantity(100, "GB/s", source),
        "memory_bandwidth_reached": quantity(0.5, "share", source),
        "peak": {"float32": quantity(1, "TFLOP/s", source)},
        "launch": quantity(2, "us", source),
        "dispatch": quantity(0, "us", source),
        "inside": {"bandwidth": quantity(10, "GB/s", source), "latency": quantity(3, "us", source)},
        "overlap": {"compute": quantity(1.5, "times", source), "communication": quantity(1, "times", source)},
    }


def test_numbers_are_read_in_their_units(tmp_path):
    path = tmp_path / "mine.yaml"
    hardware.write(path, described(), "Made up.")
    found = hardware.load(path)
    assert (found.name, found.devices, found.memory, found.bandwidth) == ("mine", 2, 8e9, 5e10)
    assert (found.peak, found.launch, found.inside) == ({"float32": 1e12}, 2e-6, Link(1e10, 3e-6))
    assert (found.between, found.overlap, found.tables) == (None, Overlap(1.5, 1), {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("memory", {"value": 8, "unit": "GiB", "source": "s"}, "memory: expected .* at least 0 in GB, .*found 8 GiB"),
        ("memory", 8, "memory: expected a number of at least 0 in GB, with its source, found 8"),
        ("memory", None, "memory: expected a number .* in GB, with its source, found None"),
        ("launch", {"value": "2", "unit": "us", "source": "s"}, "launch: expected .* in us, .* found '2' us"),
        ("launch", {"value": -2, "unit": "us", "source": "s"}, "launch: expected .* in us, .* found -2 us"),
        ("devices", {"value": 2.5, "unit": "devices", "source": "s"}, "devices: expected a whole number .* 2.5"),
        ("inside.bandwidth", {"value": 0, "unit": "GB/s", "source": "s"}, "inside.bandwidth: .* above 0 in GB/s"),
        ("memory_bandwidth_reached", {"value": 80, "unit": "share", "source": "s"}, "at most 1 in share, .* 80 share"),
        ("overlap.compute", {"value": 0.9, "unit": "times", "source": "s"}, "at least 1 in times, .* found 0.9 times"),
        ("skew", {"value": 5, "unit": "share", "source": "s"}, "skew: expected .* at most 1 in share, .* 5 share"),
        ("peak.float32", {"value": 1, "unit": "TFLOP/s"}, "peak.float32: .* found 1 TFLOP/s from None; say where from"),
        ("peak", {}, "peak: expected keys below it, found {}"),
        ("engine", "vllm", "engine: expected one of tensorrt-llm, torch, torch-cpu, found 'vllm'"),
        ("title", "", "title: expected a text, found ''"),
        ("kernels", "none.json", "none.json: expected a JSON file, found none"),
        ("inside.speed", 3, "inside.speed: unknown key"),
        ("speed", 3, "speed: unknown key"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_the_unit_and_what_was_found(tmp_path, key, value, message):
    changed = copy.deepcopy(described())
    *above, last = key.split(".")
    section = changed
    for word in above:
        section = section[word]
    section[last] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(InputError, match=message) as error:
        hardware.load(path)
    assert "\n" not in str(error.value)


def test_hardware_that_is_not_there_and_files_that_are_no_yaml_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"hardware: expected one of .* found 'tpu'"):
        hardware.load("tpu")
    for text in ("a: [", "just words"):
        Path("bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"bad.yaml: expected"):
            hardware.load("bad.yaml")


def test_a_measured_kernel_takes_its_time_and_longer_where_less_bandwidth_bounds_it():
    models = hardware.table_models(
        {"element_bytes": 2, "reference": {"flops": 1e12, "bytes": 1e9, "launch": 0.0}, "tables": ["product"]}
    )
    axes = {"m": [1, 64], "n": [64], "k": [64]}
    table = Table(axes, [3e-5, 8e-6 * 64], models["product"])
    product = Operation("linear", "product", (1, 1, 64, 64), "float16", 2 * 64 * 64, 2 * (64 + 64 * 64 + 64))
    measured = {"tables": {"product": table}, "table_dtypes": ("float16",)}
    assert machine(**measured).seconds(product, 1) == pytest.approx(3e-5)
    assert machine(**measured, bandwidth=5e8).seconds(product, 1) == pytest.approx(6e-5)
    assert machine(**measured, peak={"float16": 5e11}).seconds(product, 1) == pytest.approx(3e-5)


def test_a_type_without_a_peak_is_refused():
    product = Operation("linear", "product", (1, 1, 1, 1), "float64", 2, 24)
    with pytest.raises(InputError, match=r"dtype: expected one that made up has a peak for .float16., found float64"):
        machine().seconds(product, 1)


def test_collectives_take_the_algorithms_steps_and_bytes_within_and_between_machines():
    here = machine()
    assert here.seconds(collective("all_reduce", range(4), 1e6), 4) == pytest.approx(4e-6 + 1.5 * 1e-3)
    assert here.seconds(collective("all_gather", range(4), 1e6), 4) == pytest.approx(2e-6 + 0.75 * 4e-3)
    # Four machines of four: within each, then, of a quarter of the bytes each, between them.
    between = 4 * 1e-5 + 1.5 * 0.25e6 / 1e8
    assert here.seconds(collective("all_reduce", range(16), 1e6), 16) == pytest.approx(4e-6 + 1.5e-3 + between)
    # Every fourth of 16: one on each machine.
    assert here.seconds(collective("all_reduce", range(0, 16, 4), 1e6), 16) == pytest.approx(4e-5 + 1.5e-2)


def test_ranks_beyond_one_machine_need_a_network():
    with pytest.raises(InputError, match=r"tp: expected at most the 4 devices of made up, .* found 8"):
        machine(between=None).check_ranks(8)
    machine().check_ranks(8)


def config_of(architecture, world, width=64):
    return config_from_dict(
        {"n_layer": 3, "vocab_size": 192, "block_size": 64} | sizes_of(architecture, width, width // 8, world)
    )


def ttft(config, world, machine):
    traced = trace(config, world, batch=1, new_tokens=32)
    return play(traced, lambda each: machine.seconds(each, world), machine.overlap_of, machine.skew).seconds


def test_without_communications_cost_kraken_and_standard_differ_by_their_arithmetic_alone():
    ideal = machine(inside=Link(math.inf, 0.0), bandwidth=math.inf, launch=0.0, devices=8, overlap=Overlap(1.7, 1.3))
    standard, kraken = (config_of(name, 4) for name in ("standard", "kraken"))
    seconds = {config.architecture: ttft(config, 4, ideal) for config in (standard, kraken)}
    flops = {config.architecture: prefill_flops(config.to_dict(), 32) for config in (standard, kraken)}
    assert seconds["kraken"] / seconds["standard"] == pytest.approx(flops["kraken"] / flops["standard"])
    assert seconds["kraken"] == pytest.approx(flops["kraken"] / 4 / 1e12)


def random_machine(generator):
    def some(low, high):
        return 10 ** generator.uniform(low, high)

    ratios = [some(-0.5, 1) for _ in range(4)]
    table = Table({"ranks": [2, 4], "bytes": [1e2, 1e6]}, ratios, lambda ranks, bytes: 1.0)
    return {
        "inside": Link(some(7, 12), some(-7, -3)), "between": Link(some(6, 11), some(-6, -3)),
        "bandwidth": some(8, 12), "peak": {"float16": some(10, 15)}, "launch": some(-7, -4),
        "devices": generator.choice([2, 4]), "overlap": Overlap(1 + generator.random(), 1 + generator.random()),
        "tables": {"all_reduce": table} | generator.choice([{}, {BESIDE: table, TAKEN: table}]),
        "skew": generator.choice([0.0, 0.1]),
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(6))
def test_more_bandwidth_never_makes_anything_slower(architecture, seed):
    generator = random.Random(seed)
    described = random_machine(generator)
    config = config_of(architecture, 4)
    before = ttft(config, 4, machine(**described))
    factor = 10 ** generator.uniform(0, 2)
    for key in ("inside", "between"):
        link = described[key]
        faster = described | {key: Link(factor * link.bandwidth, link.latency)}
        assert ttft(config, 4, machine(**faster)) <= before * (1 + 1e-9)
    faster = described | {"bandwidth": factor * described["bandwidth"]}
    assert ttft(config, 4, machine(**faster)) <= before * (1 + 1e-9)
    faster = described | {"peak": {"float16": factor * described["peak"]["float16"]}}
    assert ttft(config, 4, machine(**faster)) <= before * (1 + 1e-9)
