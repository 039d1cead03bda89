"""What Kraken should save of standard's time to first token over a link, by its parts, and what it does save.

    python benchmarks/expected_gain.py

Two ranks, width 1024, eight layers, vocabulary 50304, float32, batch 1, one thread a rank, over loopback and 1 Gbit/s.
In the same turns: each model's prefill as it is; the same computing with every collective answered on the spot, by both
ranks at once and by rank 0 while the other waits; and its AllReduces, one after another, with nothing beside them. If
Kraken hid all of its AllReduces at no cost, and standard's took no longer than on their own, the speed-up would be
(what standard computes + its AllReduces) / what Kraken computes. Waiting for the slower rank is in none of these parts.
"""

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import stream_ranks
from krakenlm.inference.shards import as_engine, random_rank
from krakenlm.latency.bandwidth import settle
from krakenlm.latency.links import network
from krakenlm.latency.turns import interleave
from krakenlm.models.collectives import WORLD, Collectives, Done, Group
from krakenlm.models.sizing import sizes_of

ARCHITECTURES, CONTEXTS, LINKS, RUNS, WARMUP = ("standard", "kraken"), (128, 512), ("loopback", "1gbit"), 15, 2
SHAPE = {"n_layer": 8, "vocab_size": 50304, "block_size": max(CONTEXTS)}
STEPS = ("prefill", "both compute", "one computes", "AllReduces")


class Answered:
    """Collectives that return at once what their rank gave, and note what was to be summed."""

    def __init__(self, comm: Collectives) -> None:
        self.rank, self.world, self.summed = comm.rank, comm.world, []

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Done:
        if len(group.ranks(self.rank, self.world)) > 1:
            self.summed.append(x.shape)
        return Done(x)

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Done:
        return Done(torch.cat([x] * self.world, dim=dim))


def steps_of(module: nn.Module, context: int, comm: Collectives) -> list[Callable[[], object]]:
    """What is timed of a model at one context, in the order of STEPS."""
    prompt_1T = torch.randint(SHAPE["vocab_size"], (1, context), generator=torch.Generator().manual_seed(0))
    cache, answered = Cache(module, 1, context), Answered(comm)

    def prefill(collectives: Collectives = comm) -> None:
        next(generate(module, prompt_1T, 1, collectives, cache))

    prefill(answered)
    messages = [torch.zeros(shape) for shape in answered.summed]

    def sums() -> None:
        for message in messages:
            comm.all_reduce(message).wait()

    return [prefill, lambda: prefill(answered), lambda: comm.rank == 0 and prefill(answered), sums]


def on_rank(comm: Collectives, device: str, link: str) -> Iterator[dict]:
    """Body of one rank: median milliseconds of every step of every model, by context."""
    link_gbit = settle(link, comm, device)
    modules = [
        as_engine(
            random_rank(
                models.config_from_dict(sizes_of(name, 1024, 16, comm.world) | SHAPE),
                comm.rank, comm.world, 0, device, torch.float32,
            )
        )
        for name in ARCHITECTURES
    ]  # fmt: skip
    for context in CONTEXTS:
        steps = [step for module in modules for step in steps_of(module, context, comm)]
        taken = interleave(steps, comm, device, WARMUP, lambda taken: len(taken[0]) >= RUNS)
        medians = iter([statistics.median(each) for each in taken])
        found = {name: {step: next(medians) for step in STEPS} for name in ARCHITECTURES}
        yield {"context": context, "link_gbit": link_gbit, "found": found}


def main() -> None:
    print(f"| link | Gbit/s | context | architecture | {', ms | '.join(STEPS)}, ms | speed-up | by its parts |")
    print("|" + "---|" * (6 + len(STEPS)))
    for link in LINKS:
        with network(link, 2) as ranks_network:
            for each in stream_ranks("benchmarks.expected_gain:on_rank", {"link": link}, 2, 1, ranks_network):
                print_rows(link, each)


def print_rows(link: str, each: dict) -> None:
    standard = each["found"]["standard"]
    for name, taken in each["found"].items():
        speedup = standard["prefill"] / taken["prefill"]
        expected = (standard["both compute"] + standard["AllReduces"]) / taken["both compute"]
        by_parts = f"{expected:.2f}" if name == "kraken" else ""
        times = " | ".join(f"{taken[step]:.0f}" for step in STEPS)
        given = f"{link} | {each['link_gbit']:.2f} | {each['context']}"
        print(f"| {given} | {name} | {times} | {speedup:.2f} | {by_parts} |")


if __name__ == "__main__":
    main()
