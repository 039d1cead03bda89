"""The real pipeline through profiles/slurm, on a cluster of two nodes that share this machine."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from krakenlm import config

pytestmark = pytest.mark.slurm

MINIATURE = Path(__file__).parents[1] / "pipeline" / "miniature.yaml"
# What the profile asks for, cut down to two nodes of two cores and 4 GB; status without accounting.
SMALL_NODES = [
    "--slurm-no-account", "--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=1",
    "--latency-wait=10", "--default-resources", "mem_mb=1000", "runtime=60",
    "--set-resources", "train:nodes=2", "train:mem_mb=1000", "tokens:mem_mb=1000", "ttft:mem_mb=1000",
    "--set-threads", "tokens=1", "ttft=2", "engines=2",
]  # fmt: skip
TWO_NODES = {"models": {"kraken-2way": {"training": {"devices": 2, "micro_batch": 1, "steps": 300}}}}


def spanning_job() -> str:
    """Number of the running job that has both nodes, '' if there is none."""
    command = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %D"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next((line.split()[0] for line in lines if line.split()[1] == "2"), "")


def terminate_training(run: subprocess.Popen, folder: Path) -> str:
    """Send SIGTERM to the training on both nodes once it has saved; returns its job's number."""
    while run.poll() is None:
        if list(folder.glob("results/tiny/*/models/kraken-2way/seed0-*/checkpoints/step-*.ckpt")) and (
            job := spanning_job()
        ):
            subprocess.run(["scancel", "--signal=TERM", job], check=True)
            return job
        time.sleep(0.05)
    return ""


def train_here(checkout, root: Path, out: Path, devices: int) -> subprocess.Popen:
    """The same training started by hand, without SLURM, in as many processes; `root` has the tokens."""
    settings = yaml.safe_load((checkout.folder / "config" / "scales" / "tiny.yaml").read_text())
    for over in (yaml.safe_load(MINIATURE.read_text()), TWO_NODES):
        settings = config.merge(settings, over)
    recipe = config.recipe(settings, "kraken-2way") | {"devices": devices}
    command = [Path(sys.executable).parent / "krakenlm", "train", "--tokens", root / "tokens"]
    command += ["--tokenizer", root / "tokenizer.json", "--seed", "0", "--recipe", json.dumps(recipe), "--out", out]
    command += ["--model", json.dumps(config.architecture(settings, "kraken-2way"))]
    environment = os.environ | {"WANDB_MODE": "disabled", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)


def losses(folder: Path) -> list[float]:
    return [point["loss"] for point in json.loads((folder / "metrics.json").read_text())["curve"]]


@pytest.fixture(scope="module")
def finished(slurm, checkouts):
    """A checkout in which the pipeline has run; its training over both nodes was sent SIGTERM on the way."""
    checkout = checkouts("slurm")
    two_nodes = [f"{key}={json.dumps(value)}" for key, value in TWO_NODES.items()]
    run = checkout.start("--workflow-profile", "profiles/slurm", *SMALL_NODES, "--config", *two_nodes, **slurm)
    try:
        checkout.terminated = terminate_training(run, checkout.folder)
        run.wait()
    finally:
        run.kill()  # where the test is broken off; its jobs end with the daemons
    assert run.returncode == 0, (checkout.folder / "snakemake.log").read_text()[-5000:]
    return checkout


def test_the_pipeline_comes_to_its_end_with_every_table_and_the_report(finished):
    for table in ("perplexity", "superglue", "ttft", "engines"):
        with open(finished.folder / "results" / f"{table}.csv", newline="") as file:
            names = {row.get("model") or row["architecture"] for row in csv.DictReader(file)}
        assert names >= ({"standard", "kraken"} if table == "ttft" else {"standard", "kraken-2way"}), table
    assert (finished.folder / "results" / "report.html").stat().st_size > 10_000


def test_a_training_that_was_sent_sigterm_goes_on_in_its_retry(finished):
    assert finished.terminated
    log = (finished.folder / "snakemake.log").read_text()
    assert f"SLURM-job '{finished.terminated}' failed" in log
    assert "Trying to restart job" in log
    (trained,) = finished.folder.glob("results/tiny/*/models/kraken-2way/seed0-*")
    assert json.loads((trained / "metrics.json").read_text())["timings"]["resumed_at_step"] > 0


def test_two_nodes_learn_what_one_process_learns_and_to_the_last_bit_what_two_processes_learn(finished, tmp_path):
    (trained,) = finished.folder.glob("results/tiny/*/models/kraken-2way/seed0-*")
    by_hand = [train_here(finished, trained.parents[2], tmp_path / str(devices), devices) for devices in (1, 2)]
    assert [process.wait() for process in by_hand] == [0, 0]
    assert losses(tmp_path / "1") == pytest.approx(losses(trained), rel=1e-5)
    assert (tmp_path / "2" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
