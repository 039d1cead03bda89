"""A trace played on a rank's two streams: when each operation runs, and what communication hides under.

Operations run in the order of the trace, collectives in the order in which they start, on a stream of their own. While
both streams are busy each may be slower than alone (`Overlap`). All ranks run alike, so one stands for all.
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


def play(trace: Trace, seconds: Callable[[Operation], float], overlap: Overlap) -> Timeline:
    """The timeline of a trace whose operations take `seconds(operation)` each when alone."""
    streams, alone = Streams(overlap), {}
    for step in trace.steps:
        if isinstance(step, Wait):
            streams.wait(step.behind)
            continue
        if id(step) not in alone:
            alone[id(step)] = seconds(step)
        (streams.compute if step.ranks is None else streams.start)(step, alone[id(step)])
    streams.wait(0)
    return Timeline(streams.computed, streams.communicated, streams.now)


class Streams:
    """The compute stream, at the time `now`, and the communication stream with what it has still to do."""

    def __init__(self, overlap: Overlap) -> None:
        self.overlap = overlap
        self.now = 0.0
        self.computed: list[Event] = []
        self.communicated: list[Event] = []
        self.waiting: deque[tuple[Operation, float]] = deque()  # collectives behind the one that runs
        # Of the collective that runs: what it is, seconds left if alone, when it began, how long compute ran meanwhile.
        self.running: Operation | None = None
        self.left = self.began = self.overlapped = 0.0
        self.started = 0

    def start(self, collective: Operation, seconds: float) -> None:
        self.started += 1
        self.waiting.append((collective, seconds))
        if self.running is None:
            self.next_collective()

    def next_collective(self) -> None:
        self.running = None
        if self.waiting:
            self.running, self.left = self.waiting.popleft()
            self.began, self.overlapped = self.now, 0.0

    def finish_collective(self) -> None:
        self.communicated.append(Event(self.running, self.began, self.now, self.overlapped))
        self.next_collective()

    def wait(self, behind: int) -> None:
        """Let the compute stream stand still until all collectives but the `behind` latest are done."""
        while len(self.communicated) < self.started - behind:
            self.now += self.left
            self.finish_collective()

    def compute(self, operation: Operation, seconds: float) -> None:
        """Run an operation, and beside it the collectives that have started."""
        began, overlapped = self.now, 0.0
        slower, slower_collective = self.overlap.compute, self.overlap.communication
        while self.running is not None and seconds > 0:
            until_computed, until_collected = seconds * slower, self.left * slower_collective
            both = min(until_computed, until_collected)
            self.now += both
            self.overlapped += both
            overlapped += both
            seconds = 0.0 if both == until_computed else seconds - both / slower
            if both == until_collected:
                self.finish_collective()
            else:
                self.left -= both / slower_collective
        self.now += seconds
        self.computed.append(Event(operation, began, self.now, overlapped))


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
