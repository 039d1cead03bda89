"""Training throughput of Kraken's batched splits: against a loop over splits, and against standard of equal parameters.

    python benchmarks/training_throughput.py                  # on a CPU, one thread, float32
    python benchmarks/training_throughput.py --compiled       # the same, through torch.compile as well
    python benchmarks/training_throughput.py --device cuda    # on a GPU: the six configurations, bf16, both ways

A step is forward, backward, clipping and AdamW on random tokens. Models of a group take turns step by step; the table
has medians, and ratios of paired steps with their bootstrap intervals. Before timing, the loop has to give the batched
model's loss and gradients. Peak memory is of training the one model alone. CPU: resident size of a process of its own,
less what it had before the model. GPU: allocated.

On a GPU the loop runs eager alone, since compiling its 24 to 96 sub-layers takes minutes. The others of a size are
compiled at once, in processes side by side, which then make steps in turns.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from krakenlm import models
from krakenlm.latency.statistics import speedup
from krakenlm.machine import keep_freed_memory
from krakenlm.models import blocks
from krakenlm.models.sizing import parameter_count, training_flops_per_token
from krakenlm.training.calibration import matrix_rate

WARMUP, RUNS = 3, 20
GPU_WARMUP, GPU_RUNS = 3, 12


@dataclass(frozen=True)
class Group:
    """A Kraken and the standard model that it stands beside, trained on equal batches."""

    name: str
    sequences: int
    tokens: int  # in each
    kraken: dict
    standard: dict

    def sizes(self, shape: dict) -> dict[str, dict]:
        """{model: its sizes}."""
        kraken = {"architecture": "kraken"} | self.kraken | shape
        standard = {"architecture": "standard", "n_layer": kraken["n_layer"]} | self.standard | shape
        return {"kraken": kraken, "loop": kraken, "standard": standard}


NARROW = {"degree": 4, "n_layer": 4, "n_head": 16, "width": 128}, {"width": 220, "n_head": 10}
WIDE = {"degree": 4, "n_layer": 2, "n_head": 12, "width": 504}, {"width": 864, "n_head": 12}
CPU_GROUPS = [Group("width 128, 4-way", *batch, *NARROW) for batch in ((1, 32), (1, 64), (1, 256), (4, 256))]
CPU_GROUPS += [Group("width 504, 4-way", *batch, *WIDE) for batch in ((1, 128), (1, 256), (4, 256))]
CPU_SHAPE = {"vocab_size": 1024, "block_size": 256}
GPT2 = {
    "125m": {"n_layer": 12, "n_head": 12, "width": 768},
    "350m": {"n_layer": 24, "n_head": 16, "width": 1024},
    "760m": {"n_layer": 36, "n_head": 20, "width": 1280},
}
KRAKENS = [
    ("125m", {"degree": 2, "width": 678, "n_layer": 12, "n_head": 12}),
    ("125m", {"degree": 4, "width": 504, "n_layer": 12, "n_head": 12}),
    ("125m", {"degree": 6, "width": 418, "n_layer": 12, "n_head": 12}),
    ("350m", {"degree": 2, "width": 888, "n_layer": 24, "n_head": 16}),
    ("350m", {"degree": 4, "width": 644, "n_layer": 24, "n_head": 16}),
    ("760m", {"degree": 4, "width": 960, "n_layer": 24, "n_head": 16}),
]
# One sequence, where calling kernels is what costs, and about as many as let one model's training fit a card of 24 GB.
# The models of a size, which train in turns, take 32 GB together compiled and, by count, up to 40 eager.
SEQUENCES = {"125m": 8, "350m": 4, "760m": 2}
GPU_GROUPS = [
    Group(f"{size} {kraken['degree']}-way", sequences, 1024, kraken, GPT2[size])
    for size, kraken in KRAKENS
    for sequences in (1, SEQUENCES[size])
]
GPU_SHAPE = {"vocab_size": 50304, "block_size": 1024}


HEADER = """\
| shapes | run | model | parameters | step, ms | tokens/s | of matrix rate | peak, MB | Kraken's speed-up |
|---|---|---|---|---|---|---|---|---|"""


class Split(nn.Module):
    """One split's part of a layer, as a module of its own."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def attend(self, x_BTD):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1))
        y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def feed(self, x_BTD):
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))


class LoopKraken(nn.Module):
    """Kraken with a Python loop over splits: what the batched product is measured against."""

    def __init__(self, config) -> None:
        super().__init__()
        width, n = config.width, config.degree
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, width))
        self.positions = nn.Parameter(torch.empty(config.block_size, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(Split(width, config.ffn_expansion * width, config.heads_per_split) for _ in range(n))
            for _ in range(config.n_layer)
        )
        self.merge, self.norm = nn.Linear(n * width, width, bias=False), nn.LayerNorm(width, bias=False)

    def forward(self, tokens_BT):
        x_BTD = F.embedding(tokens_BT, self.tokens) + self.positions[: tokens_BT.shape[1]]
        streams = [x_BTD] * len(self.layers[0])
        for index, layer in enumerate(self.layers):
            total = sum(streams) if index else None
            following = []
            for split, x in zip(layer, streams, strict=True):
                a = split.attend(split.norm1(x))
                following.append(x + a + split.feed(split.norm2(x + a if total is None else total + a)))
            streams = following
        return F.linear(self.norm(self.merge(torch.cat(streams, dim=-1))), self.tokens)

    def take(self, batched) -> "LoopKraken":
        """The weights of a batched Kraken."""
        with torch.no_grad():
            self.tokens.copy_(batched.embedding.tokens)
            self.positions.copy_(batched.embedding.positions)
            for layer, theirs in zip(self.layers, batched.layers, strict=True):
                for i, split in enumerate(layer):
                    for own, other in (
                        (split.norm1, theirs.norm1), (split.norm2, theirs.norm2), (split.qkv, theirs.attention.qkv),
                        (split.out, theirs.attention.out), (split.up, theirs.mlp.up), (split.down, theirs.mlp.down),
                    ):  # fmt: skip
                        own.weight.copy_(other.weight[i])
            self.merge.weight.copy_(torch.cat(list(batched.merge.weight), dim=1))
            self.norm.weight.copy_(batched.norm.weight)
        return self


def build(kind: str, sizes: dict, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        module = models.build(sizes)
        if kind == "loop":
            module = LoopKraken(module.config).take(module)
    return module.to(dtype)


def batch_of(sequences: int, tokens: int, vocab_size: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (sequences, tokens + 1), generator=generator).to(device)


def loss_of(module: Callable, tokens_BW: torch.Tensor, device: str) -> torch.Tensor:
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits_BTV = module(tokens_BW[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BW[:, 1:].flatten())


class Training:
    """A model with its optimizer and a batch; a call is one step."""

    def __init__(self, kind: str, group: Group, shape: dict, device: str, compiled: bool) -> None:
        self.before = torch.cuda.memory_allocated() if device == "cuda" else 0
        module = build(kind, group.sizes(shape)[kind], device)
        self.parameters = list(module.parameters())
        self.module, self.device = module, device
        self.loss = torch.compile(loss_of) if compiled else loss_of
        self.tokens_BW = batch_of(group.sequences, group.tokens, shape["vocab_size"], device)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def __call__(self) -> torch.Tensor:
        loss = self.loss(self.module, self.tokens_BW, self.device)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def milliseconds(self) -> float:
        """Time of a step."""
        start = time.perf_counter()
        self().item()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def warm_up(self, steps: int) -> float | None:
        """Make steps; on a GPU MB at their peak beyond what was there before, without what compiling takes."""
        if self.device == "cpu":
            for _ in range(steps):
                self()
            return None
        self()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(steps - 1):
            self()
        torch.cuda.synchronize()
        # Others that wait for their turn need the memory.
        torch.cuda.empty_cache()
        return (torch.cuda.max_memory_allocated() - self.before) / 1e6


def check(sizes: dict, device: str) -> None:
    """The loop has the batched model's loss and gradients: two of the layers, in float64 and, as kernels of their own
    are used there, in float32 with every norm of splits in one.
    """
    blocks.FUSED, usual = 1, blocks.FUSED
    try:
        check_gradients(sizes, device)
    finally:
        blocks.FUSED = usual


def check_gradients(sizes: dict, device: str) -> None:
    """The loop's and the batched model's, as FUSED is."""
    sizes = sizes | {"n_layer": 2}
    tokens_BW = batch_of(1, min(256, sizes["block_size"]), sizes["vocab_size"], device)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        batched, loop = (build(kind, sizes, device, dtype) for kind in ("kraken", "loop"))
        losses = []
        for module in (batched, loop):
            logits_BTV = module(tokens_BW[:, :-1])
            losses.append(F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BW[:, 1:].flatten()))
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
        for split in range(sizes["degree"]):
            ours, theirs = batched.layers[0].mlp.up.weight.grad[split], loop.layers[0][split].up.weight.grad
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


class Apart:
    """A training in a process of its own, which makes a step when it is told to."""

    def __init__(self, index: int, kind: str, device: str, compiled: bool) -> None:
        command = [sys.executable, __file__, "--device", device, "--apart", json.dumps([index, kind])]
        # Many compile at once.
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
        self.process = subprocess.Popen(
            [*command, "--compiled"] if compiled else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def number(self) -> float:
        """What the process says next: its peak memory in MB once it is ready, then milliseconds of each step."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks/training_throughput.py: {self.process.args} ended early; see above")
        return float(line)

    def step(self) -> float:
        print("step", file=self.process.stdin, flush=True)
        return self.number()

    def close(self) -> None:
        """End the process; one that still works is not waited for."""
        self.process.kill()
        self.process.communicate()


def serve(step: Training, warmup: int, before_kb: float) -> None:
    """The other end of Apart."""
    peak = step.warm_up(warmup)
    print((peak_resident_kb() - before_kb) / 1e3 if peak is None else peak, flush=True)
    for _ in sys.stdin:
        print(step.milliseconds(), flush=True)


def in_turns(steps: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """{model: milliseconds of each step}."""
    kinds, taken = list(steps), {kind: [] for kind in steps}
    for step in steps.values():
        step()  # gets back the memory that was given up while others warmed up
    for run in range(runs):
        for kind in kinds[run % len(kinds) :] + kinds[: run % len(kinds)]:
            taken[kind].append(steps[kind]())
    return taken


def peak_resident_kb() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


class Benchmark:
    """The groups of a device, and the table's lines."""

    def __init__(self, device: str, compiled: bool) -> None:
        self.device, self.gpu = device, device == "cuda"
        self.compiled = compiled or self.gpu
        self.groups, self.shape = (GPU_GROUPS, GPU_SHAPE) if self.gpu else (CPU_GROUPS, CPU_SHAPE)
        self.warmup, self.runs = (GPU_WARMUP, GPU_RUNS) if self.gpu else (WARMUP, RUNS)

    def training(self, index: int, kind: str, compiled: bool) -> Training:
        return Training(kind, self.groups[index], self.shape, self.device, compiled)

    def run(self) -> None:
        self.rate = matrix_rate(torch.device(self.device), torch.bfloat16 if self.gpu else torch.float32)
        name = torch.cuda.get_device_name() if self.gpu else f"cpu, {torch.get_num_threads()} thread"
        print(f"{name}, matrix product {self.rate / 1e9:.0f} GFLOP/s, PyTorch {torch.__version__}\n")
        print(HEADER)
        krakens = [group.sizes(self.shape)["kraken"] for group in self.groups]
        for sizes in [each for i, each in enumerate(krakens) if each not in krakens[:i]]:
            check(sizes, self.device)
        if self.gpu:
            torch.cuda.empty_cache()  # for the processes that compile
        for size in GPT2 if self.gpu else ():
            self.compiled_apart(size)
        for index in range(len(self.groups)):
            for compiled in [False] if self.gpu or not self.compiled else [False, True]:
                self.here(index, compiled)

    def here(self, index: int, compiled: bool) -> None:
        """The models of a group in this process; on a CPU memory is asked of processes of their own."""
        torch.compiler.reset()
        steps, peaks = {}, {}
        for kind in self.groups[index].sizes(self.shape):
            steps[kind] = self.training(index, kind, compiled)
            peaks[kind] = steps[kind].warm_up(self.warmup)
        taken = in_turns({kind: step.milliseconds for kind, step in steps.items()}, self.runs)
        if not self.gpu:
            peaks = {kind: self.peak_apart(index, kind, compiled) for kind in steps}
        self.print(index, taken, peaks, compiled)

    def peak_apart(self, index: int, kind: str, compiled: bool) -> float:
        apart = Apart(index, kind, self.device, compiled)
        peak = apart.number()
        apart.close()
        return peak

    def compiled_apart(self, size: str) -> None:
        """Groups of a size with several sequences: all models compiled side by side, then timed in turns."""
        started: dict[str, Apart] = {}
        of_group = {}
        try:
            for index, group in enumerate(self.groups):
                if group.sequences > 1 and group.name.startswith(size):
                    keys = {kind: json.dumps(group.sizes(self.shape)[kind]) for kind in ("kraken", "standard")}
                    of_group[index] = keys
                    for kind, key in keys.items():
                        if key not in started:  # the standard model is that of every Kraken of its size
                            started[key] = Apart(index, kind, self.device, True)
            peaks = {key: apart.number() for key, apart in started.items()}
            for index, keys in of_group.items():
                taken = in_turns({kind: started[key].step for kind, key in keys.items()}, self.runs)
                self.print(index, taken, {kind: peaks[key] for kind, key in keys.items()}, True)
        finally:
            for apart in started.values():
                apart.close()

    def print(self, index: int, taken: dict[str, list[float]], peaks: dict[str, float], compiled: bool) -> None:
        group = self.groups[index]
        tokens = group.sequences * group.tokens
        for kind, milliseconds in taken.items():
            own, median = group.sizes(self.shape)[kind], float(np.median(milliseconds))
            flops = tokens * training_flops_per_token(own | {"block_size": group.tokens})
            ratio, low, high = speedup(milliseconds, taken["kraken"])
            cells = [
                f"{group.name}, {group.sequences} x {group.tokens} tokens", "compiled" if compiled else "eager", kind,
                f"{parameter_count(own):,}", f"{median:.1f}", f"{1e3 * tokens / median:,.0f}",
                f"{flops / (median * 1e-3) / self.rate:.0%}", f"{peaks[kind]:,.0f}",
                "" if kind == "kraken" else f"{ratio:.2f} ({low:.2f} to {high:.2f})",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compiled", action="store_true", help="through torch.compile as well")
    parser.add_argument("--apart", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    benchmark = Benchmark(options.device, options.compiled)
    if options.apart:
        before_kb = peak_resident_kb()
        step = benchmark.training(*options.apart, options.compiled)
        serve(step, benchmark.warmup, before_kb)
    else:
        benchmark.run()


if __name__ == "__main__":
    main()
