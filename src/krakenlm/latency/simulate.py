"""A trace played on a rank's two streams: when each operation runs, and what communication hides under.

Operations run in the order of the trace, collectives in the order in which they start, on a stream of their own. While
both streams are busy each may be slower than alone (`Overlap`). All ranks run alike, so one stands for all, but that a
collective begins when the slowest has come to it: later by a share of what was computed since the one before (`skew`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from krakenlm.latency.hardware import Overlap
from krakenlm.latency.trace import Operation, Trace, Wait


class Event(NamedTuple):
    """An operation in time, in seconds; `overlapped` is how long the other stream was busy meanwhile."""

    operation: Operation
    start: float
    end: float
    overlapped: float


@dataclass(frozen=True)
class Timeline:
    """What ran when, compute and communication each in order, and the seconds until both are done."""

    compute: list[Event]
    communication: list[Event]
    seconds: float


def play(
    trace: Trace, seconds: Callable[[Operation], float], overlap: Callable[[Operation], Overlap], skew: float = 0.0
) -> Timeline:
    """The timeline of a trace whose operations take `seconds(operation)` each when alone, and whose collectives and
    compute slow each other by `overlap(collective)`."""
    streams, alone, factors = Streams(skew), {}, {}
    for step in trace.steps:
        if isinstance(step, Wait):
            streams.wait(step.behind)
            continue
        key = id(step)
        if key not in alone:
            alone[key] = seconds(step)
            factors[key] = None if step.ranks is None else overlap(step)
        if step.ranks is None:
            streams.compute(step, alone[key])
        else:
            streams.start(step, alone[key], factors[key])
    streams.wait(0)
    return Timeline(streams.computed, streams.communicated, streams.now)


class Collective(NamedTuple):
    """One that has started: what it takes alone, and when the slowest rank has come to it."""

    operation: Operation
    seconds: float
    overlap: Overlap
    joined: float


class Streams:
    """The compute stream, at the time `now`, and the communication stream with what it has still to do."""

    def __init__(self, skew: float) -> None:
        self.skew = skew
        self.now = 0.0
        self.computed: list[Event] = []
        self.communicated: list[Event] = []
        self.waiting: deque[Collective] = deque()  # behind the one that runs
        self.running: Collective | None = None
        # Of the one that runs: seconds until it is joined, seconds left after that if alone, when it began, how long
        # compute ran meanwhile.
        self.until_joined = self.left = self.began = self.overlapped = 0.0
        self.started = 0
        self.since_started = 0.0  # seconds of compute since the latest collective started

    def start(self, collective: Operation, seconds: float, overlap: Overlap) -> None:
        joined = self.now + self.skew * self.since_started
        self.started, self.since_started = self.started + 1, 0.0
        self.waiting.append(Collective(collective, seconds, overlap, joined))
        if self.running is None:
            self.next_collective()

    def next_collective(self) -> None:
        self.running = None
        if self.waiting:
            self.running = self.waiting.popleft()
            self.until_joined, self.left = max(0.0, self.running.joined - self.now), self.running.seconds
            self.began, self.overlapped = self.now, 0.0

    def finish_collective(self) -> None:
        self.communicated.append(Event(self.running.operation, self.began, self.now, self.overlapped))
        self.next_collective()

    def wait(self, behind: int) -> None:
        """Let the compute stream stand still until all collectives but the `behind` latest are done."""
        while len(self.communicated) < self.started - behind:
            self.now += self.until_joined + self.left
            self.finish_collective()

    def compute(self, operation: Operation, seconds: float) -> None:
        """Run an operation, and beside it the collectives that have started."""
        began, overlapped = self.now, 0.0
        while self.running is not None and seconds > 0:
            done, both = self.beside(seconds)
            overlapped += both
            seconds -= done
        self.now += seconds
        self.since_started += self.now - began
        self.computed.append(Event(operation, began, self.now, overlapped))

    def beside(self, seconds: float) -> tuple[float, float]:
        """Run the collective and `seconds` of compute beside each other until one of them is done, or the collective
        joined: (seconds of compute done, time taken)."""
        if self.until_joined:
            both = done = min(seconds, self.until_joined)
            self.until_joined -= both
            self.pass_together(both)
            return done, both
        slower = self.running.overlap
        until_computed, until_collected = seconds * slower.compute, self.left * slower.communication
        both = min(until_computed, until_collected)
        self.pass_together(both)
        if both == until_collected:
            self.finish_collective()
        else:
            self.left -= both / slower.communication
        return (seconds if both == until_computed else both / slower.compute), both

    def pass_together(self, both: float) -> None:
        self.now += both
        self.overlapped += both


PARTS = (
    "norm", "gemm", "gemm_overlapped", "attention", "lm_head", "other", "all_reduce_exposed", "all_reduce_hidden",
)  # fmt: skip


def part_of(operation: Operation) -> str:
    """What an operation's time goes to: norm, gemm, attention, lm_head, all_reduce or other."""
    if operation.kind == "all_gather" or (operation.kind == "product" and operation.module == "embedding"):
        return "lm_head"
    if operation.kind == "product":
        return "gemm"
    return operation.kind if operation.kind in ("norm", "attention", "all_reduce") else "other"


def breakdown(timeline: Timeline) -> Mapping[str, float]:
    """Seconds by what they go to, as the paper breaks down a forward: all but the last add up to the whole.

    Products with the embedding, and the gathering of their parts, are the LM head. `gemm_overlapped` is products' time
    under a collective. `all_reduce_hidden` is the AllReduces' time under compute, `all_reduce_exposed` the rest of it.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for event in timeline.compute:
        part, seconds = part_of(event.operation), event.end - event.start
        if part == "gemm":
            parts["gemm_overlapped"] += event.overlapped
            seconds -= event.overlapped
        parts[part] += seconds
    for event in timeline.communication:
        part, exposed = part_of(event.operation), max(0.0, event.end - event.start - event.overlapped)
        if part == "all_reduce":
            parts["all_reduce_hidden"] += event.overlapped
            part = "all_reduce_exposed"
        parts[part] += exposed
    return parts


def chrome_trace(timeline: Timeline, title: str) -> dict:
    """The timeline in the Trace Event Format, which chrome://tracing and ui.perfetto.dev open; microseconds."""
    named = [
        {"ph": "M", "pid": 0, "tid": 0, "name": "process_name", "args": {"name": title}},
        {"ph": "M", "pid": 0, "tid": 0, "name": "thread_name", "args": {"name": "compute"}},
        {"ph": "M", "pid": 0, "tid": 1, "name": "thread_name", "args": {"name": "communication"}},
    ]
    return {"traceEvents": [*named, *events_of(timeline)], "displayTimeUnit": "ms"}


def events_of(timeline: Timeline) -> Iterator[dict]:
    for stream, events in enumerate((timeline.compute, timeline.communication)):
        for event in events:
            operation = event.operation
            yield {
                "ph": "X",
                "pid": 0,
                "tid": stream,
                "name": operation.module or operation.name,
                "cat": part_of(operation),
                "ts": 1e6 * event.start,
                "dur": 1e6 * (event.end - event.start),
                "args": {
                    "operation": operation.name,
                    "shape": list(operation.shape),
                    "dtype": operation.dtype,
                    "flops": operation.flops,
                    "bytes": operation.bytes,
                    "overlapped_us": 1e6 * event.overlapped,
                },
            }
