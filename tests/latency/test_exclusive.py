"""A timing job is alone on the machine, whoever started the others."""

import multiprocessing
import time

from krakenlm.latency.exclusive import alone, beside_others


def stage(kind, lock, events, name, seconds):
    with kind(lock, name):
        events.put((time.monotonic(), f"{name} starts"))
        time.sleep(seconds)
        events.put((time.monotonic(), f"{name} ends"))


def test_nothing_runs_beside_a_timing_job_and_a_waiting_one_is_not_starved(tmp_path):
    fork = multiprocessing.get_context("fork")
    events, lock = fork.Queue(), tmp_path / "lock"
    plan = [(beside_others, "a", 0.6), (beside_others, "b", 0.9), (alone, "timing", 0.5), (beside_others, "c", 0.2)]
    processes = []
    for kind, name, seconds in plan:
        processes.append(fork.Process(target=stage, args=(kind, lock, events, name, seconds)))
        processes[-1].start()
        time.sleep(0.2)
    for process in processes:
        process.join()
    order = [name for _, name in sorted(events.get() for _ in range(8))]
    assert order.index("timing starts") > max(order.index("a ends"), order.index("b ends"))
    assert order[order.index("timing starts") + 1] == "timing ends"
    assert order.index("c starts") > order.index("timing ends")
