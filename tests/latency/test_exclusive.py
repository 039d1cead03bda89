"""A timing job is alone on the machine, whoever started the others."""

import fcntl
import multiprocessing
import time

import pytest

from krakenlm.latency.exclusive import alone, beside_others

FORK = multiprocessing.get_context("fork")


def stage(kind, lock, events, name, end):
    events.put(f"{name} arrives")
    with kind(lock, name):
        events.put(f"{name} starts")
        end.wait()
        events.put(f"{name} ends")


def wait_until_the_gate_is_shut(lock):
    deadline = time.monotonic() + 30
    with open(f"{lock}.gate", "a") as gate:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(gate, fcntl.LOCK_UN)
            time.sleep(0.01)
    pytest.fail("no timing job has shut the gate")


def said(events):
    """What a stage says next."""
    deadline = time.monotonic() + 30
    while events.empty():
        assert time.monotonic() < deadline, "nothing was said"
        time.sleep(0.01)
    return events.get()


@pytest.fixture
def begin(tmp_path):
    """Start a stage: its process, what lets it end, and what all stages say, in the order in which they said it."""
    events, processes = FORK.SimpleQueue(), []

    def begun(kind, name):
        end = FORK.Event()
        processes.append(FORK.Process(target=stage, args=(kind, tmp_path / "lock", events, name, end)))
        processes[-1].start()
        assert said(events) == f"{name} arrives"
        return end

    begun.events = events
    yield begun
    for process in processes:
        process.kill()
        process.join()


def test_nothing_runs_beside_a_timing_job_and_a_waiting_one_is_not_starved(begin, tmp_path):
    end_a = begin(beside_others, "a")
    assert said(begin.events) == "a starts"
    end_b = begin(beside_others, "b")
    assert said(begin.events) == "b starts"
    end_timing = begin(alone, "timing")
    wait_until_the_gate_is_shut(tmp_path / "lock")
    end_c = begin(beside_others, "c")
    time.sleep(0.2)  # c would start now, if it could
    end_a.set()
    assert said(begin.events) == "a ends"
    time.sleep(0.2)
    end_b.set()
    assert [said(begin.events) for _ in range(2)] == ["b ends", "timing starts"]
    time.sleep(0.2)
    assert begin.events.empty()
    end_timing.set()
    end_c.set()
    assert [said(begin.events) for _ in range(3)] == ["timing ends", "c starts", "c ends"]
