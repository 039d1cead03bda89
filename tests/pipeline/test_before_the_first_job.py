"""What a plain `snakemake` says before it starts anything: price, scale, and one line for each mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from krakenlm import files

ROOT = Path(__file__).parents[2]
# What a stage writes, and its log, in its shell line.
WRITTEN = re.compile(r"--out (\S+).* > (\S+) 2>&1")


def started(checkout):
    return list((checkout.folder / "results").glob("*/*")) if (checkout.folder / "results").exists() else []


def test_eight_claimed_gpus_mean_the_papers_scale_its_price_and_an_exit(checkout):
    run = checkout.snakemake(PATH=checkout.claim_gpus(8))
    assert run.returncode != 0
    assert "scale paper" in run.stdout
    assert "GPU-hours" in run.stdout
    assert "kraken-760m-4way" in run.stdout
    assert "budget.gpu_hours: expected at most 48, found an estimate of" in run.stdout
    assert "to accept it: snakemake --config 'budget={gpu_hours:" in run.stdout
    assert started(checkout) == []


def test_one_claimed_gpu_means_the_single_gpu_scale(checkout):
    run = checkout.snakemake("--dry-run", PATH=checkout.claim_gpus(1))
    assert run.returncode == 0, run.stdout
    assert "scale single-gpu" in run.stdout


def test_a_dry_run_of_the_papers_scale_lists_every_job_without_a_gpu(checkout):
    run = checkout.snakemake("--dry-run", "--config", "scale=paper")
    assert run.returncode == 0, run.stdout
    assert "GPU-hours" in run.stdout
    for rule, count in {"train": 9, "superglue": 9, "ttft": 10, "shard": 9}.items():
        assert any(line.split() == [rule, str(count)] for line in run.stdout.splitlines()), rule


def test_snakemake_plan_prints_what_krakenlm_plan_prints_and_starts_nothing_else(checkout):
    run = checkout.snakemake("plan", "--config", "scale=paper", "training={steps: 10000}", "budget={hardware: h100}")
    assert run.returncode == 0, run.stdout
    command = [Path(sys.executable).parent / "krakenlm", "plan", "--scale", "paper", "--hardware", "h100"]
    command += ["--config", '{"training": {"steps": 10000}}']
    table = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True, check=True).stdout
    assert "kraken-760m-4way, seed 0" in table
    assert table in run.stdout
    assert [path.name for path in started(checkout)] == ["logs"]


def test_the_price_of_a_dry_run_is_that_of_the_plan(checkout):
    run = checkout.snakemake("--dry-run", "--config", "scale=paper", "budget={hardware: a100-40gb}")
    page = (ROOT / "docs" / "plan.md").read_text()
    in_all = next(line.strip() for line in page.splitlines() if line.strip().startswith("in all"))
    assert in_all in run.stdout


def test_a_dry_run_of_a_target_prices_its_jobs_alone_and_says_whether_the_budget_would_refuse_them(checkout):
    gpus = checkout.claim_gpus(8)
    part = checkout.snakemake("--dry-run", "results/ttft.csv", "--config", "scale=paper", PATH=gpus)
    assert part.returncode == 0, part.stdout
    price = part.stdout.partition("estimated price")[2]
    assert [line.split()[0] for line in price.splitlines()[2:]] == ["TTFT", "in", "krakenlm:"]
    assert part.stdout.endswith("krakenlm: this run is within the budget, the free disk and the devices here\n")
    whole = checkout.snakemake("--dry-run", "--config", "scale=paper", PATH=gpus)
    assert whole.returncode == 0, whole.stdout
    assert "this run would not start: budget.gpu_hours: expected at most 48, found an estimate of" in whole.stdout
    assert "to accept it: snakemake --config 'budget={gpu_hours:" in whole.stdout.replace(" scale=paper", "")


def test_a_dry_run_for_a_cluster_looks_at_no_device_of_the_machine_where_it_is_called(checkout):
    setting = ["--workflow-profile", "profiles/slurm", "--config", "scale=paper"]
    run = checkout.snakemake("--dry-run", "results/ttft.csv", *setting)
    assert run.returncode == 0, run.stdout
    assert run.stdout.endswith("krakenlm: this run is within the budget and the free disk\n")


def test_a_clusters_profile_is_found_from_where_the_command_was_given(checkout, tmp_path):
    # Where the command is given lies the profile; Snakemake works in another folder, which has a configuration, too.
    (tmp_path / "config").symlink_to(checkout.folder / "config")
    setting = ["--directory", str(tmp_path), "--workflow-profile", "profiles/slurm", "--config", "scale=paper"]
    run = checkout.snakemake("--dry-run", "results/ttft.csv", *setting)
    assert "krakenlm: this run is within the budget and the free disk\n" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_dry_run_that_no_price_can_be_told_of_says_so_in_one_line(checkout):
    setting = ["scale=single-gpu", "training={precision: 32-true}", "budget={hardware: h100}"]
    run = checkout.snakemake("--dry-run", "results/ttft.csv", "--config", *setting, PATH=checkout.claim_gpus(1))
    last = run.stdout.splitlines()[-1]
    assert last.startswith("krakenlm: this run would not start: dtype: expected one that h100 has a peak for")
    assert "Traceback" not in run.stdout


def test_a_log_is_of_one_output_whatever_the_configuration(checkout):
    first, second = (
        {log: out for out, log in WRITTEN.findall(checkout.miniature("--dry-run", "-p", *settings).stdout)}
        for settings in ([], ["--config", "engines={runs: 3}", "seeds=[5]", "evaluation={superglue: {examples: 5}}"])
    )
    assert {out for out in second.values() if out not in first.values()}
    assert first.keys() & second.keys()
    for log in first.keys() & second.keys():
        assert first[log] == second[log], log


def test_a_model_from_elsewhere_is_read_and_not_trained(checkout):
    theirs = "models={theirs: {from: openai-community/gpt2}}"
    run = checkout.miniature("--dry-run", "results/perplexity.csv", "--config", theirs)
    assert run.returncode == 0, run.stdout
    stats = run.stdout.split("Job stats:")[1].splitlines()
    for rule, count in {"train": 2, "import_model": 1, "perplexity": 3}.items():
        assert any(line.split() == [rule, str(count)] for line in stats), rule


def test_ttft_alone_trains_nothing(checkout):
    run = checkout.miniature("--dry-run", "results/ttft.csv")
    assert run.returncode == 0, run.stdout
    stats = run.stdout.split("Job stats:")[1].splitlines()
    assert {line.split()[0] for line in stats if line.strip()} >= {"ttft", "ttft_table"}
    assert not any(line.startswith(("train", "corpus", "tokens")) for line in stats)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("scale=huge", "scale: expected one of auto, paper, single-gpu, tiny; found 'huge'"),
        ("colour=red", "colour: unknown key; expected one of"),
        ("training={stepz: 3}", "training.stepz: unknown key; expected one of"),
        ("training={steps: many}", "training.steps: expected a value of type integer, found 'many'"),
        ("training={steps: 0}", "training.steps: expected a number of at least 1, found 0"),
        ("models={standard: {training: {stepz: 3}}}", "models.standard.training.stepz: unknown key"),
        ("models={standard: {training: {learning_rate: -1.0}}}", "training.learning_rate: expected a number above 0"),
        ("budget={gpu_hours: nan}", "budget.gpu_hours: expected a value of type number, found 'nan'"),
        ("models={standrd: null}", "models.standrd: expected one of standard, parallel, ladder, kraken-2way"),
        ("seeds=[]", "seeds: expected a list of at least 1, found []"),
        ("models={new: {width: 3}}", "models.new.architecture: expected a value, found none"),
        ("models={standard: {architecture: mamba}}", "models.standard.architecture: expected one of standard"),
        ("models={kraken-4way: {n_head: 6}}", "models.kraken-4way.n_head: expected a multiple of the degree (4)"),
        ("text={source: files, files: [nowhere.txt]}", "found no file at nowhere.txt"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_that_names_the_key(checkout, setting, line):
    run = checkout.snakemake("--config", *(setting, "scale=tiny") if not setting.startswith("scale") else (setting,))
    assert run.returncode != 0
    assert run.stdout.splitlines()[-1].startswith("krakenlm: ")
    assert line in run.stdout.splitlines()[-1]
    assert "Error" not in run.stdout
    assert "Traceback" not in run.stdout
    assert started(checkout) == []


def test_more_ranks_than_cores_are_refused_before_anything_starts(checkout):
    run = checkout.miniature("results/ttft.csv", "--config", "latency={tp: [64], sizes: {width-64: {n_head: 64}}}")
    assert run.returncode != 0
    assert "latency.tp: expected tp x threads within this machine's" in run.stdout
    assert started(checkout) == []


def test_a_gpu_that_is_not_there_is_missed_before_anything_starts(checkout):
    run = checkout.miniature("results/ttft.csv", "--config", "device=cuda")
    assert run.returncode != 0
    assert "device: expected an NVIDIA GPU on this machine for cuda, found none" in run.stdout
    assert started(checkout) == []


def test_tensorrt_llm_is_missed_before_anything_starts_and_auto_takes_the_pytorch_engine_and_says_so(checkout):
    run = checkout.miniature("results/ttft.csv", "--config", "engine=tensorrt_llm")
    assert run.returncode != 0
    assert "engine: expected device cuda (found cpu) for tensorrt_llm; provide it, or choose another" in run.stdout
    assert started(checkout) == []
    run = checkout.miniature("--dry-run", "results/ttft.csv")
    assert run.returncode == 0, run.stdout
    assert "engine torch; TensorRT-LLM would need device cuda (found cpu)" in run.stdout
    assert "tensorrt_ttft" not in run.stdout


def test_with_tensorrt_llm_every_shape_and_every_trained_model_gets_its_engines(checkout):
    run = checkout.snakemake("--dry-run", "results/ttft.csv", "results/engines.csv", "--config", "scale=paper",
                             "engine=tensorrt_llm")  # fmt: skip
    assert run.returncode == 0, run.stdout
    jobs = {"tensorrt_build_shape": 40, "tensorrt_ttft": 10, "tensorrt_build": 9, "tensorrt_engines": 9, "engines": 1}
    for rule, count in jobs.items():
        assert any(line.split() == [rule, str(count)] for line in run.stdout.splitlines()), rule
    assert not any(line.split()[:1] == ["ttft"] for line in run.stdout.splitlines())


def test_a_second_snakemake_in_the_same_folder_says_who_is_at_work(checkout):
    lock = files.claim(checkout.folder / "results" / ".lock", "snakemake")
    run = checkout.miniature("results/ttft.csv")
    lock.close()
    assert run.returncode != 0
    assert "expected to be the only snakemake at work here, found process" in run.stdout
