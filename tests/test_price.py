"""What a run will cost, against arithmetic done by hand; the table in the docs is the command's."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from krakenlm import config, machine, plan, price
from krakenlm.errors import InputError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "plan.md"


def scale(name, **changes):
    base = yaml.safe_load((ROOT / "config" / "scales" / f"{name}.yaml").read_text())
    own = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return config.merge(config.merge(base, own), changes) | {"scale": name}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Where config/hardware is, on a machine without GPUs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(price, "gpu_names", list)


@pytest.fixture
def paper():
    return scale("paper", budget={"hardware": "a100-40gb", "utilisation": 0.5})


def priced(settings, model):
    devices = price.stated_devices(settings)
    return price.job_cost(settings, "train", {"model": model, "seed": "0"}, devices)


def test_a_training_costs_what_is_computed_by_hand(paper):
    cost = priced(paper, "gpt2-124m")
    # 300,001 updates of 480 windows of 1,024 tokens.
    assert cost.tokens == 300_001 * 480 * 1024 == 147_456_491_520
    # A token's forward: 12 layers of 12 d^2 weights and the head, two FLOPs each; attention over 512.5 tokens, two
    # products; backward twice as much.
    forward = 2 * (12 * 12 * 768**2 + 50304 * 768 + 12 * 2 * 768 * 512.5)
    assert cost.flops == pytest.approx(3 * forward * cost.tokens)
    # Half of 312 TFLOP/s on each of eight GPUs.
    assert cost.gpu_hours == pytest.approx(cost.flops / 156e12 / 3600)
    assert cost.wall_hours == pytest.approx(cost.gpu_hours / 8)
    assert cost.core_hours == 0
    # The last and the best model in float32; three checkpoints with two moments.
    assert cost.disk_bytes == 124_373_760 * (4 + 4 + 3 * 12)


def test_a_training_that_does_not_fit_is_said_to_with_the_micro_batch_that_would(paper):
    assert priced(paper, "gpt2-774m").fits == "fits"
    paper["training"] |= {"micro_batch": 60}
    paper["models"]["gpt2-774m"]["training"] |= {"micro_batch": 63}
    cost = priced(paper, "gpt2-774m")
    assert cost.memory > 0.9 * 40e9
    assert cost.fits == "does not fit; micro_batch 9 would"


def test_more_machines_are_priced_where_one_has_too_few_gpus(paper):
    assert price.stated_devices(paper).gpus == 8
    paper["training"] |= {"gpus": 24, "micro_batch": 1}
    assert price.stated_devices(paper).gpus == 24


def test_this_machines_gpus_are_known_by_their_name_and_unknown_ones_are_priced_as_the_papers(monkeypatch, paper):
    paper["budget"]["hardware"] = "auto"
    for name, described in {
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100-80gb",
        "Some GPU": "a100-40gb",
    }.items():
        monkeypatch.setattr(price, "gpu_names", lambda name=name: [name] * 8)
        assert f"8 GPUs of {described} " in price.stated_devices(paper).title


def test_without_gpus_and_a_name_a_training_is_priced_on_as_many_as_it_takes():
    assert price.stated_devices(scale("single-gpu")).gpus == 1
    assert price.stated_devices(scale("single-gpu", budget={"hardware": "h100"})).gpus == 8


def test_a_precision_that_the_hardware_has_no_peak_for_is_refused(paper):
    paper["training"]["precision"] = "32-true"
    with pytest.raises(InputError, match=r"expected one that a100-40gb has a peak for .*, found float32"):
        price.stated_devices(paper)


def test_the_sum_is_that_of_the_parts_and_timings_are_alone(paper):
    devices = price.stated_devices(paper)
    costs = price.estimate(paper, price.all_jobs(paper), devices)
    whole = price.total(costs, devices)
    trained = [cost for cost in costs if cost.tokens]
    assert len(trained) == 9
    assert whole.tokens == sum(cost.tokens for cost in trained)
    assert whole.gpu_hours == pytest.approx(sum(cost.gpu_hours for cost in costs))
    others = [cost for cost in costs if not cost.alone]
    # One engines job, and TTFT of five sizes at two degrees, a quarter of an hour each.
    alone = 0.25 * (1 + 5 * 2)
    assert whole.wall_hours == pytest.approx(sum(cost.gpu_hours for cost in others) / 8 + alone)


def test_models_on_one_gpu_each_are_trained_side_by_side(paper):
    paper["training"] |= {"gpus": 1, "steps": 3000}
    devices = price.stated_devices(paper)
    costs = [priced(paper, model) for model in paper["models"]]
    longest, together = max(cost.wall_hours for cost in costs), sum(cost.gpu_hours for cost in costs) / 8
    assert price.total(costs, devices).wall_hours == pytest.approx(max(longest, together))


def test_the_budget_is_held_against_the_same_numbers(paper):
    devices = price.stated_devices(paper)
    costs = price.estimate(paper, price.all_jobs(paper), devices)
    hours = price.total(costs, devices).gpu_hours
    paper["budget"] |= {"gpu_hours": hours + 1, "disk_gb": 1000}
    plan.refuse_over_budget(costs, devices, paper, ["snakemake"])
    paper["budget"] |= {"gpu_hours": int(hours) - 1}
    with pytest.raises(
        InputError, match=rf"budget.gpu_hours: .* found an estimate of {hours:.0f}; nothing was started"
    ):
        plan.refuse_over_budget(costs, devices, paper, ["snakemake"])
    assert f"{hours:,.1f}" in price.describe(costs, devices).splitlines()[-1]


def test_on_cpus_cores_are_priced():
    tiny = scale("tiny")
    cost = priced(tiny, "standard")
    assert cost.tokens == (tiny["training"]["steps"] + 1) * 4 * 128
    assert cost.gpu_hours == 0
    assert cost.core_hours == cost.wall_hours == pytest.approx(cost.flops / 30e9 / 3600)


def test_a_measured_rate_takes_the_place_of_the_stated_one():
    from krakenlm.models.sizing import training_flops_per_token

    settings = scale("tiny", models={"parallel": None, "ladder": None, "kraken-4way": None})
    settings = config.without_nulls(settings)
    devices = price.measured_devices(settings, gpus=0)
    assert set(devices.rates) == {"standard", "kraken-2way"}
    assert "measured on this machine" in devices.source
    cost = price.job_cost(settings, "train", {"model": "standard", "seed": "0"}, devices)
    per_token = training_flops_per_token(price.sized(settings, "standard"))
    assert cost.wall_hours == pytest.approx(cost.tokens * per_token / devices.rates["standard"] / 3600)


def test_the_plan_in_the_docs_is_what_the_command_prints(monkeypatch):
    from typer.testing import CliRunner

    from krakenlm.cli import app

    command, printed = re.search(r"\$ krakenlm (plan .*)\n((?:    .*\n)+)", DOCS.read_text()).groups()
    run = CliRunner().invoke(app, command.split())
    assert run.exit_code == 0, run.output
    assert [line.strip() for line in printed.splitlines()] == [line.strip() for line in run.output.splitlines()]


def test_engines_of_tensorrt_llm_are_in_the_price_of_a_whole_run(paper):
    devices = price.stated_devices(paper)
    without = price.estimate(paper, price.all_jobs(paper), devices)
    paper["engine"] = "tensorrt_llm"
    with_engines = {cost.what: cost for cost in price.estimate(paper, price.all_jobs(paper), devices)}
    assert "engines of TensorRT-LLM" not in {cost.what for cost in without}
    latency = paper["latency"]
    assert with_engines["engines of TensorRT-LLM"].disk_bytes == sum(
        price.engine_bytes(paper, size, name, tp)
        for size in latency["sizes"].values()
        for tp in latency["tp"]
        for name in latency["architectures"]
        if name != "standard-chunked"
    )


def test_a_training_on_cpus_is_held_against_the_machines_memory_where_there_are_gpus_too(monkeypatch, paper):
    monkeypatch.setattr(machine, "query_gpus", lambda field: ["1 MiB"])
    assert priced(scale("tiny"), "standard").room == machine.host_memory()
    paper["models"]["gpt2-124m"]["training"] = {"gpus": 0, "precision": "32-true"}
    assert priced(paper, "gpt2-124m").room == machine.host_memory()
    assert priced(paper, "gpt2-355m").room == 40e9


def test_hours_of_gpus_are_shared_by_gpus_and_hours_of_cores_by_cores(paper):
    devices = dataclasses.replace(price.stated_devices(paper), gpus=8, cores=2)
    costs = [price.Cost("a", gpu_hours=16), price.Cost("b", core_hours=6)]
    assert price.total(costs, devices).wall_hours == 3
    assert price.total(costs[:1], devices).wall_hours == 2


def test_on_cpus_evaluations_and_timings_are_priced_by_their_forward_passes():
    tiny = scale("tiny")
    costs = {cost.what: cost for cost in price.estimate(tiny, price.all_jobs(tiny), price.stated_devices(tiny))}
    timed, evaluated = costs["TTFT"], costs["evaluation"]
    # On one rank and, twice as fast, on two: the most timed runs, one before and those profiled, of each architecture.
    runs = tiny["latency"]["most_runs"] + 1 + tiny["latency"]["profiled_runs"]
    flops = sum(
        runs * price.prefill_flops(price.timed_sizes(tiny, size, name, tp), context) / tp
        for size in tiny["latency"]["sizes"].values()
        for name in ("standard", "parallel", "ladder", "kraken")
        for context in (64, 256, 512)
        for tp in (1, 2)
    )
    assert timed.wall_hours == pytest.approx(4 * 8 / 3600 + flops / 45e9 / 3600)
    assert timed.alone
    assert timed.gpu_hours == evaluated.gpu_hours == 0
    # 8 formats of 300 examples, a window each; 5% of 600,000 words of six bytes, and the authors' windows.
    tokens = 8 * 300 * 128 + 0.05 * 600_000 * 6 / 4.6 + tiny["evaluation"]["authors_windows"] * 128
    flops = sum(tokens * price.forward_flops_per_token(price.sized(tiny, model), 128) for model in tiny["models"])
    assert evaluated.core_hours == pytest.approx(5 * 2 * 8 / 3600 + flops / 45e9 / 3600)


def test_a_part_of_a_run_costs_what_its_own_jobs_cost(paper):
    timings = [(rule, wildcards) for rule, wildcards in price.all_jobs(paper) if rule == "ttft"]
    devices = price.stated_devices(paper)
    costs = price.estimate(paper, timings, devices)
    assert [cost.what for cost in costs] == ["TTFT"]
    paper["budget"] |= {"gpu_hours": 48, "disk_gb": 100}
    plan.refuse_over_budget(costs, devices, paper, ["snakemake"])


def test_the_plan_by_hand_takes_the_engine_that_auto_stands_for(monkeypatch):
    from typer.testing import CliRunner

    from krakenlm.cli import app
    from krakenlm.inference.tensorrt import available

    monkeypatch.setenv("KRAKENLM_ENGINE", "")
    printed = {}
    for lacking in (("a GPU",), ()):
        monkeypatch.setattr(available, "missing", lambda *_, lacking=lacking, **__: list(lacking))
        run = CliRunner().invoke(app, ["plan", "--scale", "paper", "--hardware", "a100-40gb"])
        assert run.exit_code == 0, run.output
        printed[lacking] = "engines of TensorRT-LLM" in run.output
    assert printed == {("a GPU",): False, (): True}
