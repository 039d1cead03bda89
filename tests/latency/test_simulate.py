"""Timelines against those computed by hand; no second is lost or counted twice."""

import itertools
import random

import pytest

from krakenlm.latency.simulate import Overlap, breakdown, play
from krakenlm.latency.trace import Operation, Trace, Wait, trace
from krakenlm.models import ARCHITECTURES, config_from_dict
from krakenlm.models.sizing import sizes_of

SIZES = {"n_layer": 2, "vocab_size": 64, "block_size": 16}
SECONDS = {"product": 10, "attention": 5, "norm": 1, "pointwise": 0, "copy": 0, "all_reduce": 12, "all_gather": 3}


def traced(architecture, world=2, new_tokens=1, chunks=1):
    config = config_from_dict(SIZES | sizes_of(architecture, 32, 4, world))
    cached = 7 if new_tokens == 1 else 0
    return trace(
        config, world, batch=1, new_tokens=new_tokens, cached=cached,
        prepare=lambda module: setattr(module, "chunks", chunks),
    )  # fmt: skip


def seconds(operation):
    return SECONDS[operation.kind]


# One new token. A layer's products and norms take 26 (norm, qkv, attention, out) and 21 (norm, up, down); Parallel's
# take 26 in all. The norm, the head and its AllGather at the end take 14.
BY_HAND = {
    # 2 x (26 + 12 + 21 + 12) + 14: every AllReduce is waited for at once.
    "standard": (156, 48, 0),
    # 2 x (26 + 12) + 14
    "parallel": (90, 24, 0),
    # AllReduces of 12 from 26, 47, 73 and 94 on, the last of them alone behind all compute: 94 + 12 + 14
    "ladder": (120, 12, 36),
    # One AllReduce from 47 on, under the second layer's attention, which ends at 73; then 21 and the merge's 10, whose
    # sum nothing hides: 73 + 21 + 10 + 12 + 14
    "kraken": (130, 12, 12),
}


@pytest.mark.parametrize("architecture", BY_HAND)
def test_two_layers_run_as_computed_by_hand(architecture):
    timeline = play(traced(architecture), seconds, lambda _: Overlap())
    parts = breakdown(timeline)
    assert (timeline.seconds, parts["all_reduce_exposed"], parts["all_reduce_hidden"]) == BY_HAND[architecture]


def test_every_architecture_is_computed_by_hand():
    assert set(BY_HAND) == set(ARCHITECTURES)


def test_what_attention_does_not_hide_of_krakens_sum_is_waited_for(monkeypatch):
    monkeypatch.setitem(SECONDS, "all_reduce", 40)
    timeline = play(traced("kraken"), seconds, lambda _: Overlap())
    # From 47 to 87 the sum, to 73 the attention; 87 + 21 + 10 + 40 + 14.
    assert timeline.seconds == 172
    assert breakdown(timeline)["all_reduce_exposed"] == 14 + 40


def test_chunks_hide_each_others_sums_in_all_layers_but_the_last():
    # First layer: attention to 26 and 52, MLP to 73 and 94, each chunk's sum under the other's compute but the last,
    # to 106. Last layer, whose q is a product of its own: 36 + 12 + 21 + 12; then 14.
    timeline = play(traced("standard", new_tokens=8, chunks=2), seconds, lambda _: Overlap())
    assert timeline.seconds == 106 + 36 + 12 + 21 + 12 + 14
    assert breakdown(timeline)["all_reduce_hidden"] == 36


def operation(kind):
    return Operation(kind, kind, (1,), "float16", 0, 0, ranks=range(2) if kind == "all_reduce" else None)


def test_streams_slow_each_other_while_both_are_busy():
    steps = (operation("all_reduce"), operation("product"), Wait(0), operation("product"))
    trace = Trace(steps, world=2, element_bytes=2, weights=0, kv_cache=0, activations=0)
    timeline = play(trace, seconds, lambda _: Overlap(compute=2, communication=1.5))
    # The sum's 12 take 18 under the product, of which 9 of 10 seconds' work are done by then; the tenth runs alone.
    assert [(event.start, event.end) for event in timeline.communication] == [(0, 18)]
    assert [(event.start, event.end, event.overlapped) for event in timeline.compute] == [(0, 19, 18), (19, 29, 0)]


def test_a_collective_begins_when_the_slowest_rank_has_come_to_it():
    steps = (operation("product"), operation("all_reduce"), operation("attention"), Wait(0), operation("product"))
    trace = Trace(steps, world=2, element_bytes=2, weights=0, kv_cache=0, activations=0)
    timeline = play(trace, seconds, lambda _: Overlap(communication=2), skew=0.2)
    # Of 10 seconds' product the slowest rank takes 12. Of the attention's 5 the sum gets 3 of its own at half its
    # speed: 10.5 of 12 are left behind it.
    assert [(event.start, event.end, event.overlapped) for event in timeline.communication] == [(10, 25.5, 5)]
    assert timeline.seconds == 35.5


def random_timeline(architecture, seed):
    generator = random.Random(seed)
    world, new_tokens = generator.choice([(2, 1), (4, 8), (2, 8)])
    times = {kind: generator.choice([0.0, generator.expovariate(1)]) for kind in SECONDS}
    overlap = Overlap(1 + generator.random(), 1 + generator.random())
    chunks = generator.choice([1, 2])
    return play(
        traced(architecture, world, new_tokens, chunks),
        lambda each: times[each.kind],
        lambda _: overlap,
        generator.choice([0.0, 0.1]),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(8))
def test_no_time_is_lost_or_counted_twice(architecture, seed):
    timeline = random_timeline(architecture, seed)
    parts = breakdown(timeline)
    hidden = parts.pop("all_reduce_hidden")
    assert sum(parts.values()) == pytest.approx(timeline.seconds)
    for events in (timeline.compute, timeline.communication):
        busy = sum(event.end - event.start for event in events)
        assert busy <= timeline.seconds * (1 + 1e-9)
        assert all(one.end <= other.start * (1 + 1e-9) for one, other in itertools.pairwise(events))
        assert all(0 <= event.overlapped <= (event.end - event.start) * (1 + 1e-9) + 1e-12 for event in events)
    together = [sum(event.overlapped for event in events) for events in (timeline.compute, timeline.communication)]
    assert together[0] == pytest.approx(together[1])
    sums = sum(event.end - event.start for event in timeline.communication if event.operation.kind == "all_reduce")
    assert hidden + parts["all_reduce_exposed"] == pytest.approx(sums)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_communications_time_only_the_arithmetic_is_left(architecture, monkeypatch):
    monkeypatch.setitem(SECONDS, "all_reduce", 0)
    monkeypatch.setitem(SECONDS, "all_gather", 0)
    trace = traced(architecture, new_tokens=8)
    compute = sum(seconds(each) for each in trace.operations if each.ranks is None)
    assert play(trace, seconds, lambda _: Overlap(compute=3, communication=3)).seconds == compute
