"""The real Snakefile, from text to report, at a scale of a minute or two."""

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import transformers

from krakenlm.tracking.artifacts import artifact_name
from krakenlm.tracking.ledger import Ledger

COLUMNS = {
    "ttft": "architecture, size, degree, tp, context, batch, engine, device, link, runs, ttft_ms_median, ttft_ms_mean, "
    "ttft_ms_p95, ttft_ms_std, speedup_vs_standard, source, parameters, layers_measured, dtype, kv_bytes_per_token, "
    "ci_low, ci_high, link_gbit_measured, interleave, scale, run",
    "perplexity": "model, architecture, degree, parameters, tokens_seen, data, protocol, loss, perplexity, "
    "bits_per_byte, seed, scale, run",
    "superglue": "model, task, metric, value, stderr, n, chance, data, seed, scale, run",
}
COLUMNS["ttft_simulated"] = COLUMNS["ttft"]
COLUMNS["ttft_breakdown"] = (
    "architecture, size, degree, tp, context, batch, engine, device, link, runs, prefill_ms, norm_ms, gemm_ms, "
    "gemm_overlapped_ms, attention_ms, lm_head_ms, other_ms, all_reduce_exposed_ms, all_reduce_hidden_ms"
)
TASKS = {"boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"}


def rows(checkout, table):
    with open(checkout.folder / "results" / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_has_the_promised_columns_first(finished):
    for table, columns in COLUMNS.items():
        expected = columns.split(", ")
        assert list(rows(finished, table)[0])[: len(expected)] == expected
    assert all(row["scale"] == "tiny" and row["run"] for table in COLUMNS for row in rows(finished, table))


def test_perplexity_has_every_model_and_the_n_grams_and_the_generators_floor(finished):
    whole = [row for row in rows(finished, "perplexity") if row["protocol"].startswith("whole")]
    table = {row["model"]: row for row in whole}
    assert {"standard", "kraken-2way"} < set(table)
    assert sum("gram" in model or "Kneser" in model for model in table) == 3
    for row in table.values():
        assert float(row["perplexity"]) > float(row["floor_perplexity"]) > 1
        assert "synthetic" in row["data"]
    authors = [row for row in rows(finished, "perplexity") if row["protocol"] == "authors"]
    assert {row["model"] for row in authors} == {"standard", "kraken-2way"}
    assert {int(row["tokens"]) for row in authors} == {50 * 128}


def test_superglue_has_the_eight_tasks_for_every_model(finished):
    for model in ("standard", "kraken-2way"):
        table = [row for row in rows(finished, "superglue") if row["model"] == model]
        assert {row["task"] for row in table} == TASKS
        assert all(0 <= float(row["value"]) <= 1 for row in table)


def test_every_engine_generates_what_its_whole_model_generates(finished):
    table = rows(finished, "engines")
    assert {row["model"] for row in table} == {"standard", "kraken-2way"}
    assert all(row["identical"] == "True" and row["tp"] == "2" for row in table)


def test_ttft_has_every_cell_and_each_was_measured(finished):
    table = rows(finished, "ttft")
    cells = {(row["architecture"], row["tp"], row["context"]) for row in table}
    assert cells == {(a, tp, c) for a in ("standard", "kraken") for tp in "12" for c in ("16", "32")}
    for row in table:
        assert row["source"] == "measured"
        assert int(row["runs"]) >= 10
        assert float(row["ttft_ms_median"]) > 0


def test_the_simulated_table_has_every_machine_and_architecture(finished):
    table = rows(finished, "ttft_simulated")
    architectures = {"standard", "standard-chunked", "parallel", "ladder", "kraken"}
    cells = {(row["hardware"], row["size"], row["architecture"]) for row in table}
    assert cells == {(h, s, a) for h in ("a100-40gb", "l40s") for s in ("1.3b", "6.7b") for a in architectures}
    assert {row["degree"] for row in table if row["architecture"] == "kraken"} == {"4", "8"}
    assert {row["source"] for row in table} == {"simulated"}
    assert all(float(row["ttft_ms_median"]) > 0 for row in table)


def test_each_command_of_the_report_names_a_file_that_the_workflow_makes(finished):
    page = (finished.folder / "results" / "report.html").read_text()
    commands = re.findall(r">snakemake (results/\S+) --configfile (\S+)</td>", page)
    targets = {target for target, _ in commands}
    assert {"results/report.html", "results/ttft_breakdown.csv"} <= targets
    assert sum("samples" in target or "/corpus.json" in target or "manifest.json" in target for target in targets) == 3
    (configuration,) = {each for _, each in commands}
    run = finished.snakemake("--dry-run", *targets, "--configfile", configuration)
    assert run.returncode == 0, run.stdout


def test_the_report_is_one_file_that_names_the_data_as_synthetic(finished):
    page = (finished.folder / "results" / "report.html").read_text()
    assert "synthetic" in page
    assert len(page) < 5_000_000


@pytest.mark.slow
def test_snakemakes_own_report_has_the_results_with_their_captions_and_the_scale_that_ran(finished, tmp_path):
    run = finished.miniature("--report", str(tmp_path / "provenance.zip"))
    assert run.returncode == 0, run.stdout
    page = zipfile.ZipFile(tmp_path / "provenance.zip").read("provenance/report.html").decode()
    assert "at scale <strong>tiny</strong>" in page
    for caption in (
        "One page with every figure of this run",
        "Zero-shot scores on the eight SuperGLUE tasks",
        "Loss curve, validation loss",
        "One chart of the report",
    ):
        assert caption in page
    assert {f'"{name}.csv"' for name in ("perplexity", "superglue", "engines", "ttft")} <= set(
        re.findall(r'"\w+\.csv"', page)
    )


def test_the_reports_charts_and_tables_lie_beside_it_and_every_model_has_written_something(finished):
    results = finished.folder / "results"
    charts = list((results / "figures").glob("*.svg"))
    assert len(charts) == (results / "report.html").read_text().count('class="chart"')
    assert all(path.with_suffix(".pdf").exists() for path in charts)
    assert (results / "tables" / "ttft-table.tex").exists()
    samples = json.loads(next(results.rglob("samples-*.json")).read_text())["samples"]
    assert {sample["model"] for sample in samples} == {"standard", "kraken-2way"}
    assert all(sample["prompt"] for sample in samples)


@pytest.fixture(scope="module")
def wandb_runs(finished):
    """Of each run folder, the run, its artifacts and its summary's keys, as wandb's own reader reads them."""
    found = []
    for run_file in (finished.folder / "results").rglob("run-*.wandb"):
        command = [Path(sys.executable).parent / "wandb", "leet", "inspect", run_file, "--json"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        run = next(record["run"] for record in records if record["type"] == "run")
        summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
        # A table's values stand as `key.part`.
        summary = {key.partition(".")[0] for update in summaries for key in update}
        found.append((run, {record["artifact"]["name"] for record in records if record["type"] == "artifact"}, summary))
    return found


def test_every_stage_left_a_wandb_run_with_its_command_line_as_config_and_its_output_as_artifact(finished, wandb_runs):
    stages = {
        "corpus",
        "tasks",
        "tokenizer",
        "tokens",
        "train",
        "perplexity",
        "ngrams",
        "superglue",
        "compare",
        "shard",
    }
    stages |= {"engines", "samples", "ttft", "collect", "simulate", "report"}
    assert {run["job_type"] for run, _, _ in wandb_runs} == stages
    assert len({run["run_group"] for run, _, _ in wandb_runs}) == 1
    for run, artifacts, _ in wandb_runs:
        config = run["config"]["update"]
        assert config["code"]["version"]
        assert artifact_name(finished.folder / config["out"]) in artifacts
        assert "earlier_run" not in config
    configs = {run["display_name"]: run["config"]["update"] for run, _, _ in wandb_runs}
    assert configs["train kraken-2way seed 0"]["recipe"]["steps"] == 30
    assert configs["train kraken-2way seed 0"]["model"]["width"] == 28
    assert configs["train kraken-2way seed 0"]["watch"]["log_every_steps"] == 5
    assert configs["ttft width-64 tp 2"]["settings"]["contexts"] == [16, 32]
    assert configs["ttft width-64 tp 2"]["shape"] == {"n_layer": 2, "width": 64, "n_head": 4}
    assert configs["perplexity standard seed 0"]["scale"] == "tiny"


def test_runs_show_curves_tables_plots_and_summary_values(wandb_runs):
    shown = {run["display_name"]: summary for run, _, summary in wandb_runs}
    train = {"loss", "perplexity", "learning_rate", "gradient_norm", "tokens_per_second", "share_of_matrix_rate"}
    train |= {"peak_memory_gb", "seconds_left"}
    assert {f"train/{name}" for name in train} <= set(shown["train standard seed 0"])
    assert {"validation/loss", "trainer/global_step", "parameters"} <= set(shown["train standard seed 0"])
    assert {"perplexity", "evaluation/perplexity", "evaluation/loss"} <= set(shown["perplexity standard seed 0"])
    assert {"superglue", "superglue/boolq/acc"} <= set(shown["superglue standard seed 0"])
    plots = {f"{column} over context" for column in ("ttft_ms_median", "speedup_vs_standard")}
    one_rank = shown["ttft width-64 tp 1"]
    assert {"ttft", "ttft/ttft_ms_median/kraken/32/none", "ttft/speedup_vs_standard/kraken/16/none"} <= set(one_rank)
    tables = " ".join(one_rank)
    assert all(plot in tables for plot in [*plots, "ttft_ms_median chart"])
    assert "ttft" in shown["collect ttft.csv"]


@pytest.mark.parametrize("result", ["perplexity.csv", "superglue.csv", "comparisons.csv", "engines.csv", "report.html"])
def test_a_result_leads_back_to_its_corpus(finished, result):
    ledger = Ledger(finished.folder / "results" / "tiny")
    sources, artifact = {}, ledger.artifact_at(finished.folder / "results" / result)["artifact"]
    for line in ledger.unlinked():
        for written in ledger.lines("wrote"):
            if written["run"] == line["run"]:
                sources.setdefault(written["artifact"], set()).add(line["artifact"])
    found, open_ends = set(), {artifact}
    while open_ends:
        found |= open_ends
        open_ends = set().union(*(sources.get(each, set()) for each in open_ends)) - found
    corpus = next((finished.folder / "results").glob("tiny/*/corpus"))
    assert {artifact_name(corpus), artifact_name(corpus.parent / "tokens")} < found
    assert any(each.startswith(f"{corpus.parent.name}.models.standard.") for each in found)


def test_a_row_of_ttft_leads_back_to_the_run_that_timed_it(finished):
    ledger = Ledger(finished.folder / "results" / "tiny")
    table = ledger.artifact_at(finished.folder / "results" / "ttft.csv")
    read = {line["artifact"] for line in ledger.unlinked() if line["run"] == table["run"]}
    timed = {line["run"] for line in ledger.lines("wrote") if line["artifact"] in read}
    assert {line["stage"] for line in ledger.lines("run") if line["run"] in timed} == {"ttft"}


def test_a_second_run_has_nothing_to_do(finished):
    run = finished.miniature()
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout


def jobs_of(run):
    """The rules in the statistics that a dry run, or the start of a run, prints."""
    table = run.stdout.split("Job stats:")[1].split("total")[0].splitlines()
    return {line.split()[0] for line in table if line.strip() and line.split()[-1].isdigit()}


def test_other_training_steps_would_rerun_training_and_what_follows_alone(finished):
    jobs = jobs_of(finished.miniature("--dry-run", "--config", "training={steps: 31}"))
    assert {"train", "perplexity", "superglue", "engines", "report_page"} <= jobs
    assert not jobs & {"corpus", "tokenizer", "tokens", "ttft", "tasks", "ngrams"}


def test_how_training_is_watched_reruns_the_page_alone(finished):
    run = finished.miniature("--dry-run", "--config", "training={log_every_steps: 1, checkpoint_every_steps: 7}")
    assert jobs_of(run) == {"report_page", "all"}


def test_what_was_timed_on_one_device_is_measured_anew_on_another_and_stays_where_it_was(finished):
    run = finished.miniature("--dry-run", "results/ttft.csv", "results/engines.csv", "--config", "device=cuda")
    assert jobs_of(run) == {"ttft", "ttft_table", "engines", "engines_table"}
    (measured,) = (finished.folder / "results").glob("tiny/latency-*")
    (timed,) = (finished.folder / "results").glob("tiny/*/engines/engines-*.csv")
    planned = [line for line in run.stdout.splitlines() if "Missing output files" in line]
    assert planned
    assert not any(f"{measured.name}/" in line or timed.name in line for line in planned)


@pytest.mark.slow
def test_other_steps_another_text_and_back_leave_every_model_as_it_was(checkout):
    settings = "models={kraken-2way: null}"
    text = checkout.folder / "my.txt"
    text.write_text("".join(f"The number {n} comes before the number {n + 1}.\n" for n in range(3000)))
    files = "text={source: files, files: [my.txt], vocabulary: 300}"

    def state():
        models = (checkout.folder / "results").glob("tiny/*/models/*/*/model.safetensors")
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in models}

    seen, table = {}, None
    for more in ([], ["training={steps: 31}"], [files], [files, "training={steps: 31}"]):
        run = checkout.miniature("results/perplexity.csv", "--config", settings, *more)
        assert run.returncode == 0, run.stdout
        assert seen.items() <= state().items()
        assert len(state()) == len(seen) + 1
        seen = state()
        table = table or rows(checkout, "perplexity")
    text.write_text(text.read_text() + "One more.\n")
    assert checkout.miniature("results/perplexity.csv", "--config", settings, files).returncode == 0
    assert seen.items() < state().items()
    run = checkout.miniature("results/perplexity.csv", "--config", settings)
    assert jobs_of(run) == {"perplexity_table"}
    assert rows(checkout, "perplexity") == table


@pytest.mark.slow
def test_models_from_elsewhere_are_rows_beside_those_trained_here(checkout):
    """A GPT-2 in Hugging Face's format and a model folder, through every stage that follows training."""
    settings = ["--config", "models={kraken-2way: null}"]
    assert checkout.miniature("results/perplexity.csv", *settings).returncode == 0
    trained = next((checkout.folder / "results").glob("tiny/*/models/standard/*"))
    shutil.copytree(trained, checkout.folder / "mine")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 512, "n_positions": 128}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(checkout.folder / "gpt2")
    shutil.copy(trained / "tokenizer.json", checkout.folder / "gpt2")
    settings[1] = "models={kraken-2way: null, mine: {from: mine}, theirs: {from: gpt2}}"
    run = checkout.miniature("--forcerun", "all", *settings)
    assert run.returncode == 0, run.stdout
    assert "train" not in jobs_of(run)
    whole = [row for row in rows(checkout, "perplexity") if row["protocol"].startswith("whole")]
    losses = {row["model"]: row["loss"] for row in whole}
    assert losses["mine"] == losses["standard"] != losses["theirs"]
    assert {row["model"] for row in rows(checkout, "superglue")} == {"standard", "mine", "theirs"}
    assert all(row["identical"] == "True" for row in rows(checkout, "engines"))
    assert "theirs" in (checkout.folder / "results" / "report.html").read_text()


def test_two_stages_by_hand_give_the_same_bytes(finished, tmp_path):
    corpus = next((finished.folder / "results").glob("tiny/*/corpus"))
    for name, arguments in {
        "tokenizer.json": [
            "tokenizer",
            "--corpus",
            corpus,
            "--vocabulary",
            "512",
            "--out",
            tmp_path / "tokenizer.json",
        ],
        "tokens/train.bin": [
            "tokenize",
            "--corpus",
            corpus,
            "--tokenizer",
            corpus.parent / "tokenizer.json",
            "--out",
            tmp_path / "tokens",
        ],
    }.items():
        subprocess.run(["krakenlm", *map(str, arguments)], check=True, env=finished.environment(WANDB_MODE="disabled"))
        assert (tmp_path / name).read_bytes() == (corpus.parent / name).read_bytes()


def test_the_record_of_the_run_has_the_scale_and_the_versions(finished):
    record = json.loads(next((finished.folder / "results").rglob("report-*.json")).read_text())
    assert record["scale"] == "tiny"
    assert record["versions"]["torch"].startswith("2.")
