"""DDP over gloo: the global batch is the recipe's, whatever the number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import RECIPE, train, untimed

from krakenlm.training.checkpoints import saved

SCRIPT = Path(__file__).parent / "two_processes.py"
FIFTY = RECIPE | {"steps": 50, "batch_sequences": 12, "warmup_steps": 5, "learning_rate": 2.5e-3}


def start_two(text, out, recipe):
    command = [sys.executable, SCRIPT, *text, out, json.dumps(recipe | {"devices": 2})]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone")
    train(text, out, **FIFTY)
    return untimed(out)[0]


def test_two_processes_learn_what_one_learns_and_exchange_gradients_once_per_update(text, alone, tmp_path):
    process = start_two(text, tmp_path, FIFTY)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    metrics, _ = untimed(tmp_path)
    for key in ("curve", "validation"):
        expected = [point["loss"] for point in alone[key]]
        assert [point["loss"] for point in metrics[key]] == pytest.approx(expected, rel=1e-5)
    # Three micro-batches per process and update, one exchange of all gradients.
    assert json.loads((tmp_path / "exchanges.json").read_text()) == [metrics["parameters"]] * 51


@pytest.mark.slow
def test_sigterm_at_one_of_two_processes_saves_and_ends_both_and_the_next_run_goes_on(text, alone, tmp_path):
    recipe = FIFTY | {"checkpoint_every_steps": 1000, "validate_every_steps": 1}
    process = start_two(text, tmp_path, recipe)
    while process.poll() is None and not (tmp_path / "checkpoints" / "best").exists():
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert len(saved(tmp_path / "checkpoints")) == 1
    process = start_two(text, tmp_path, recipe)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected = [point["loss"] for point in alone["curve"]]
    assert [point["loss"] for point in untimed(tmp_path)[0]["curve"]] == pytest.approx(expected, rel=1e-5)
