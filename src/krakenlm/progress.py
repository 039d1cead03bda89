"""How far a stage is, on stderr: a line every few seconds, with the time that is left."""

import sys
import time

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Says `perplexity: 1,200 of 4,000 windows, 12 s left`; nothing of a stage that ends before the first line is due.

    `total` may be an estimate; without one the line has no time left.
    """

    def __init__(self, stage: str, total: int | None, unit: str) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = 0
        self.started = self.shown = time.perf_counter()

    def add(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = time.perf_counter()
        if now - self.shown < SECONDS_BETWEEN_LINES or self.done == self.total:
            return
        self.shown = now
        line = f"{self.stage}: {self.done:,} {self.unit}"
        if self.total:
            left = max(0, self.total - self.done) * (now - self.started) / self.done
            line = f"{self.stage}: {self.done:,} of {self.total:,} {self.unit}, {duration(left)} left"
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`3 d 4 h`, `2 h 5 min`, `3 min 20 s` or `12 s`."""
    seconds = round(seconds)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
