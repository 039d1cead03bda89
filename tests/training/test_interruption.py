"""Processes that are killed or told to end, at moments of chance, and the run that goes on."""

import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from small_run import train, untimed

from krakenlm.errors import InputError
from krakenlm.training.checkpoints import saved, updates_done

LONG = {"steps": 200, "checkpoint_every_steps": 7, "validate_every_steps": 50, "log_every_steps": 10}


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """(folder, seconds) of a run of 201 updates."""
    out, started = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    train(text, out, **LONG)
    return out, time.monotonic() - started


def started(target, *arguments, **settings):
    """A process of its own, forked because importing Lightning anew takes longer than these trainings."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, kwargs=settings)
    process.start()
    return process


def wait_for_checkpoint(process, out, beyond):
    while process.is_alive() and updates_of_newest(out) <= beyond:
        time.sleep(0.002)


def updates_of_newest(out):
    return max(map(updates_done, saved(out / "checkpoints")), default=0)


def test_after_kill_9_at_three_random_moments_the_weights_are_those_of_an_undisturbed_run(text, undisturbed, tmp_path):
    expected, seconds = undisturbed
    kills = []
    while len(kills) < 3:
        process = started(train, text, tmp_path, **LONG)
        # Some checkpoints on, and somewhere on the way to the next: far from the end, were the run three times as fast.
        wait_for_checkpoint(process, tmp_path, beyond=updates_of_newest(tmp_path) + 7 * random.randint(0, 4))
        time.sleep(random.uniform(0, seconds / 29))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the run came to its end before kill {len(kills) + 1}"
        kills.append(updates_of_newest(tmp_path))
    train(text, tmp_path, **LONG)
    assert untimed(tmp_path) == untimed(expected), kills
    assert not list((tmp_path / "checkpoints").glob(".step*"))


def test_sigterm_saves_after_the_update_under_way_and_the_next_run_goes_on_from_there(
    text, undisturbed, tmp_path, capfd
):
    expected, _ = undisturbed
    process = started(train, text, tmp_path, **LONG | {"checkpoint_every_steps": 1000, "validate_every_steps": 10})
    while process.is_alive() and not (tmp_path / "checkpoints" / "best").exists():
        time.sleep(0.002)
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    (checkpoint,) = saved(tmp_path / "checkpoints")
    assert f"training: SIGTERM; saved {checkpoint} after step {updates_done(checkpoint) - 1}" in capfd.readouterr().err
    train(text, tmp_path, **LONG | {"checkpoint_every_steps": 1000, "validate_every_steps": 10})
    metrics, weights = untimed(tmp_path)
    assert weights == untimed(expected)[1]
    assert metrics["curve"] == untimed(expected)[0]["curve"]


def train_in_little_memory(text, out, answer):
    """Train where the process may take 1 GB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        train(text, out, micro_batch=2**17, batch_sequences=2**17)
    except InputError as error:
        answer.put(str(error))


def test_out_of_memory_names_a_micro_batch_that_fits(text, tmp_path):
    answer = multiprocessing.get_context("fork").SimpleQueue()
    process = started(train_in_little_memory, text, tmp_path, answer)
    process.join()
    assert not answer.empty(), process.exitcode
    line = answer.get()
    assert line.startswith("training.micro_batch: expected a micro-batch that fits in ")
    assert "found 131072, which ran out of memory" in line
    assert line.endswith("is estimated to fit; set it")
