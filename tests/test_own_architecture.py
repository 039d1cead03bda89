"""docs/architecture.md, word for word: its file and its line make an architecture for every stage."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FILE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

RANKS_TRAINING_AND_SIMULATION = """
import torch
from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.models.sizing import parameter_count

torch.manual_seed(0)
sizes = {"architecture": "staggered", "n_layer": 3, "n_head": 4, "width": 32, "vocab_size": 64, "block_size": 16}
whole = models.build(sizes)
assert sum(parameter.numel() for parameter in whole.parameters()) == parameter_count(sizes)

tokens_BT = torch.arange(32).view(2, 16) % 7
optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
losses = []
for _ in range(30):
    loss = torch.nn.functional.cross_entropy(whole(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] / 4, losses

state, config = whole.state_dict(), whole.config


def on_rank(comm):
    rank = models.build_rank(config, comm.rank, comm.world)
    rank.load_state_dict(models.shard(state.get, list(state), config, comm.rank, comm.world))
    cache = Cache(rank, batch=2, capacity=16)
    with torch.no_grad():
        return torch.cat([rank(tokens_BT[:, :9], comm, cache), rank(tokens_BT[:, 9:], comm, cache)], dim=1)


with torch.no_grad():
    expected_BTV = whole(tokens_BT)
for world in (2, 4):
    for found_BTV in run_threads(world, on_rank):
        torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-4, atol=1e-5)
"""


@pytest.fixture
def environment(tmp_path):
    """Variables under which Python finds a copy of the package with the page's file and line in it."""
    package = tmp_path / "src" / "krakenlm"
    shutil.copytree(ROOT / "src" / "krakenlm", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "staggered.py").write_text(FILE)
    registry = package / "models" / "__init__.py"
    text = registry.read_text()
    assert text.count("ARCHITECTURES = {\n") == 1
    registry.write_text(text.replace("ARCHITECTURES = {\n", "ARCHITECTURES = {\n" + LINE))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": str(package.parent), "WANDB_MODE": "offline", "PATH": path}


def test_the_examples_model_learns_and_its_ranks_have_its_logits(environment, tmp_path):
    subprocess.run([sys.executable, "-c", RANKS_TRAINING_AND_SIMULATION], env=environment, cwd=tmp_path, check=True)


def test_the_examples_one_AllReduce_in_two_is_hidden_where_it_is_simulated(environment, checkout):
    exposed = {}
    for name in ("standard", "staggered"):
        command = f"krakenlm timeline --size 1.3b --architecture {name} --tp 8 --hardware h100 --out {name}.json"
        run = subprocess.run(command.split(), env=environment, cwd=checkout.folder, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        exposed[name] = float(re.search(r"all_reduce_exposed\s+([\d.]+)", run.stdout)[1])
    assert 0 < exposed["staggered"] < exposed["standard"]


@pytest.mark.slow
def test_the_example_is_trained_scored_sharded_timed_simulated_and_shown(environment, checkout):
    model = "models={mine: {architecture: staggered, n_layer: 2, n_head: 2, width: 32}, standard: null}"
    rows = "{architectures: [standard, staggered]}"
    run = checkout.miniature("--config", model, f"latency={rows}", f"simulation={rows}", **environment)
    assert run.returncode == 0, run.stdout
    for table in ("perplexity", "superglue", "engines"):
        found = [row for row in read(checkout, table) if row["model"] == "mine"]
        assert found, table
    assert {row["identical"] for row in found} == {"True"}
    for table in ("ttft", "ttft_simulated"):
        assert {row["architecture"] for row in read(checkout, table)} == {"standard", "staggered"}, table
    assert "staggered" in (checkout.folder / "results" / "report.html").read_text()


def read(checkout, table):
    with open(checkout.folder / "results" / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))
