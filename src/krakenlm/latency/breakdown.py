"""Where a prefill's time goes, from torch.profiler around the engine's own forward.

Every function that the forward calls is put under a label by what it is, every collective is watched where it starts
and where the forward waits for it. Profiled runs are runs of their own: the labels and the profiler take time.

On a CPU a label's time is that of the thread that computes, a collective's time is from when its backend's thread
begins until it ends, and exposed is what the forward stands still for. On a GPU labels are the spans of their kernels,
and exposed is what of NCCL's kernels runs while no other kernel does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

from krakenlm.latency import depth
from krakenlm.latency.simulate import PARTS
from krakenlm.latency.trace import ATTENTION, NORMS, PRODUCTS, owner, storage_of
from krakenlm.latency.turns import wait_for_ranks
from krakenlm.models.collectives import WORLD, Collectives, Done, Group, Pending

# Seconds (start, end) in ascending order, none of which touch.
Spans = list[tuple[float, float]]
PREFIX = "krakenlm."
WHOLE = "whole"
COLLECTIVES = {"all_reduce": "all_reduce", "all_gather": "lm_head"}  # the only gathering is that of logits


class Labels(TorchFunctionMode):
    """Puts products, attention and norms under labels: the part of PARTS that their time belongs to."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.owners = {storage_of(each): owner(name) for name, each in module.named_parameters()}

    def __torch_function__(self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None):
        part = self.part_of(function.__name__, args)
        if part is None:
            return function(*args, **(kwargs or {}))
        with record_function(PREFIX + part):
            return function(*args, **(kwargs or {}))

    def part_of(self, name: str, args: tuple) -> str | None:
        """As krakenlm.latency.simulate.part_of says of what was traced; None for what is neither of them."""
        if name in PRODUCTS:
            # A packed weight has no storage to know it by, and is not the head's.
            tensors = [each for each in args if isinstance(each, Tensor) and not each.is_mkldnn]
            of_head = any(self.owners.get(storage_of(each)) == "embedding" for each in tensors)
            return "lm_head" if of_head else "gemm"
        if name == ATTENTION:
            return "attention"
        return "norm" if name in NORMS else None


class Watched:
    """Collectives whose waits are put under the label of their part."""

    def __init__(self, comm: Collectives) -> None:
        self._comm, self.rank, self.world = comm, comm.rank, comm.world

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Pending:
        return self.watched(self._comm.all_reduce(x, group), COLLECTIVES["all_reduce"])

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Pending:
        return self.watched(self._comm.all_gather(x, dim, group), COLLECTIVES["all_gather"])

    def watched(self, pending: Pending, part: str) -> Pending:
        """A rank that is alone in a group waits for nobody."""
        return pending if isinstance(pending, Done) else WatchedWork(pending, part)


class WatchedWork:
    """A collective under way."""

    def __init__(self, pending: Pending, part: str) -> None:
        self._pending, self._part = pending, part

    def wait(self) -> Tensor:
        with record_function(f"{PREFIX}wait.{self._part}"):
            return self._pending.wait()


def profiled(
    prefill: Callable[[Collectives], object], module: nn.Module, comm: Collectives, device: str, runs: int
) -> dict[str, float]:
    """Milliseconds on this rank by what they go to, mean of `runs` profiled prefills, and of the whole (`WHOLE`).

    Args:
        prefill: runs the module once with the collectives that it is given.
    """
    totals = dict.fromkeys((WHOLE, *PARTS), 0.0)
    for _ in range(runs):
        wait_for_ranks(comm, device)
        with profile(activities=activities(device)) as profiler:
            with record_function(PREFIX + WHOLE), Labels(module):
                prefill(Watched(comm))
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
            wait_for_ranks(comm, device)  # what is reported when a collective ends is reported by now
        for part, seconds in parts_of(profiler.events(), on_gpu=device.startswith("cuda")).items():
            totals[part] += 1e3 * seconds / runs
    return totals


def start_profiler(device: str) -> None:
    """Before what is profiled: the first start in a process takes its time inside whatever runs meanwhile."""
    with profile(activities=activities(device)):
        torch.zeros(1, device=device).add_(1)


def activities(device: str) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]


def parts_of(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Seconds by what they go to, and of the whole, from a profiler's events of one labelled prefill."""
    spans: dict[str, Spans] = {}
    kernels, collectives = [], {part: [] for part in COLLECTIVES.values()}
    for event in events:
        span = (1e-6 * event.time_range.start, 1e-6 * event.time_range.end)
        is_kernel = event.device_type == DeviceType.CUDA
        kind = collective_of(event.name)
        if event.name.startswith(PREFIX):
            # A label is recorded where it was called and, on a GPU, once more as the span of its kernels.
            name = event.name.removeprefix(PREFIX)
            if is_kernel == on_gpu or name == WHOLE:
                spans.setdefault(name, []).append(span)
        elif kind is not None and is_kernel == on_gpu:
            collectives[kind].append(span)
        elif is_kernel:
            kernels.append(span)
    [whole] = union(spans.pop(WHOLE))
    collectives = {part: within(union(found), whole) for part, found in collectives.items()}
    if on_gpu:
        exposed = {part: without(found, union(kernels)) for part, found in collectives.items()}
    else:
        exposed = {part: union(spans.pop(f"wait.{part}", [])) for part in collectives}
    return attribute(whole, {part: union(spans[part]) for part in PARTS if part in spans}, collectives, exposed)


def collective_of(name: str) -> str | None:
    """The part that a backend's collective of this name belongs to; None for what is no collective of a backend."""
    if not name.lower().startswith(("gloo:", "nccl")):
        return None
    return COLLECTIVES["all_gather" if "gather" in name.lower() else "all_reduce"]


def attribute(
    whole: tuple[float, float], computed: dict[str, Spans], collectives: dict[str, Spans], exposed: dict[str, Spans]
) -> dict[str, float]:
    """Seconds of PARTS and of the whole, as krakenlm.latency.simulate.breakdown has them.

    All but what is hidden add up to the whole: no moment counts twice, and `other` is what none of them has. Exposed
    comes first: a label spans the gaps between its kernels, too, in which a collective may run alone.
    """
    left = [whole]
    computed, exposed = ({part: within(found, whole) for part, found in each.items()} for each in (computed, exposed))
    for named in (exposed, computed):
        for part, found in named.items():
            named[part], left = common(found, left), without(left, found)
    parts = dict.fromkeys(PARTS, 0.0) | {part: length(found) for part, found in computed.items()}
    hidden = without(collectives["all_reduce"], exposed["all_reduce"])
    parts["gemm_overlapped"] = shared(computed.get("gemm", []), hidden)
    parts["gemm"] -= parts["gemm_overlapped"]
    parts["all_reduce_exposed"] = length(exposed["all_reduce"])
    parts["all_reduce_hidden"] = length(hidden)
    parts["lm_head"] += length(exposed["lm_head"])
    parts[WHOLE] = whole[1] - whole[0]
    parts["other"] = length(left)
    return parts


def deepened(
    parts: Mapping[str, float], of_shallow: Mapping[str, float], layers: int, n_layer: int
) -> dict[str, float]:
    """The parts, and the whole, with `n_layer` layers, from those with `layers` and with depth.SHALLOW.

    Each by its own time per layer (krakenlm.latency.depth), so that they still add up to the whole; what noise makes
    shorter with more layers may come out below zero, since to clamp it would lengthen the whole.
    """
    if layers == n_layer:
        return dict(parts)
    return {part: depth.deepened([parts[part]], [of_shallow[part]], layers, n_layer)[0] for part in (WHOLE, *PARTS)}


def union(spans: Iterable[tuple[float, float]]) -> Spans:
    """The spans joined where they meet."""
    joined: Spans = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def within(spans: Spans, whole: tuple[float, float]) -> Spans:
    """What of the spans lies in `whole`."""
    cut = [(max(start, whole[0]), min(end, whole[1])) for start, end in spans]
    return [(start, end) for start, end in cut if start < end]


def without(spans: Spans, others: Spans) -> Spans:
    """What of the spans lies in none of the others."""
    rest: Spans = []
    for start, end in spans:
        for other_start, other_end in others:
            if other_start < end and other_end > start:
                if start < other_start:
                    rest.append((start, other_start))
                start = max(start, other_end)
        if start < end:
            rest.append((start, end))
    return rest


def common(spans: Spans, others: Spans) -> Spans:
    """What of the spans lies in the others, too."""
    return [each for other in others for each in within(spans, other)]


def length(spans: Spans) -> float:
    return sum(end - start for start, end in spans)


def shared(spans: Spans, others: Spans) -> float:
    """How long both are."""
    return length(spans) - length(without(spans, others))
