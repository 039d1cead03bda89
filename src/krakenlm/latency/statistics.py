"""What is said of repeated timings, and of the machine that they were taken on."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from krakenlm.models.collectives import Collectives

RESAMPLES = 2000
# A row whose second half of runs is slower or faster than its first by more than this share has drifted.
DRIFT = 0.10


def summarise(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, mean, 95th percentile, standard deviation, the bootstrap's 95% interval of the median, and drift."""
    times = np.asarray(milliseconds)
    low, high = bootstrap_interval([times], lambda medians: medians[0])
    return {
        "ttft_ms_median": float(np.median(times)),
        "ttft_ms_mean": float(times.mean()),
        "ttft_ms_p95": float(np.percentile(times, 95)),
        "ttft_ms_std": float(times.std(ddof=1)) if len(times) > 1 else 0.0,
        "ci_low": low,
        "ci_high": high,
        **drift(times),
    }


def per_token(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median and standard deviation of the time per output token; nothing of no runs."""
    if not milliseconds:
        return {}
    times = np.asarray(milliseconds)
    return {
        "tpot_ms_median": float(np.median(times)),
        "tpot_ms_std": float(times.std(ddof=1)) if len(times) > 1 else 0.0,
    }


def drift(times: np.ndarray) -> dict[str, object]:
    """How much slower the second half of the runs was than the first, as a share, and whether that flags the row."""
    half = len(times) // 2
    share = float(np.median(times[half:]) / np.median(times[:half]) - 1) if half else 0.0
    return {"drift": share, "drifted": abs(share) > DRIFT}


def speedup(baseline: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """(ratio of medians, its 95% interval): how many times faster `other` is. Runs are paired by being interleaved."""
    pair = [np.asarray(baseline), np.asarray(other)]
    low, high = bootstrap_interval(pair, lambda medians: medians[0] / medians[1])
    return float(np.median(pair[0]) / np.median(pair[1])), low, high


def precise(baseline: Sequence[float], others: Sequence[Sequence[float]], precision: float) -> bool:
    """Whether each one's speed-up over `baseline` is known to `precision`, half its 95% interval as a share of it."""
    known = (speedup(baseline, other) for other in others)
    return all(high - low <= 2 * precision * ratio for ratio, low, high in known)


def bootstrap_interval(samples: list[np.ndarray], statistic: Callable) -> tuple[float, float]:
    """95% interval of a statistic of medians; run i of every sample is drawn together. Seeded: equal in, equal out."""
    picks = np.random.default_rng(0).integers(len(samples[0]), size=(RESAMPLES, len(samples[0])))
    values = statistic([np.median(sample[picks], axis=1) for sample in samples])
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


class Watch:
    """What else the machine did between `start` and `stop`: on each rank, around what is timed."""

    def __init__(self) -> None:
        self.moment, self.busy, self.own = time.perf_counter(), busy_seconds(), time.process_time()
        self.throttled = read_throttling()

    def stop(self, comm: Collectives, device: str) -> dict[str, object]:
        """Columns of the row: cores that others kept busy, clock in MHz, times throttled; empty where unreadable."""
        elapsed, busy = time.perf_counter() - self.moment, busy_seconds() - self.busy
        own = torch.tensor([time.process_time() - self.own], dtype=torch.float32, device=device)
        throttled = read_throttling()
        return {
            "other_load": round(max(0.0, busy - comm.all_reduce(own).wait().item()) / elapsed, 2),
            "clock_mhz": read_clock(),
            "throttled": "" if throttled == "" else throttled - self.throttled,
        }


def busy_seconds() -> float:
    """Seconds that all cores of this machine together have been busy since it started (/proc/stat)."""
    user, nice, system, _, _, interrupts, soft_interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def read_clock() -> float | str:
    """Mean clock of this process's cores in MHz."""
    clocks = []
    for core in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        if not path.exists():
            return ""
        clocks.append(int(path.read_text()) / 1e3)
    return round(sum(clocks) / len(clocks))


def read_throttling() -> int | str:
    """Times that this process's cores were throttled for heat since the machine started."""
    counts = []
    for core in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count")
        if not path.exists():
            return ""
        counts.append(int(path.read_text()))
    return sum(counts)
