"""Training throughput of Kraken's batched splits: against a loop over splits, and against standard of equal parameters.

    python benchmarks/training_throughput.py                  # on a CPU, one thread, float32
    python benchmarks/training_throughput.py --compiled       # the same, through torch.compile as well
    python benchmarks/training_throughput.py --device cuda    # on a GPU: the six configurations, bf16, both ways

A step is forward, backward, clipping and AdamW on random tokens. Models of a group take turns step by step; the table
has medians, and ratios of paired steps with their bootstrap intervals. Before timing, the loop has to give the batched
model's loss and gradients. Peak memory is that of a process (CPU: resident size less what it had before the model;
GPU: allocated) that trains the one model, measured apart.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from krakenlm import models
from krakenlm.latency.statistics import speedup
from krakenlm.machine import keep_freed_memory
from krakenlm.models.sizing import parameter_count, training_flops_per_token
from krakenlm.training.calibration import matrix_rate

WARMUP, RUNS = 3, 20
GPU_WARMUP, GPU_RUNS = 5, 20

NARROW = {"degree": 4, "n_layer": 4, "n_head": 16, "width": 128}, {"width": 220, "n_head": 10}
WIDE = {"degree": 4, "n_layer": 2, "n_head": 12, "width": 504}, {"width": 864, "n_head": 12}
# (name, (sequences, tokens in each), sizes of the Kraken, sizes of the standard model that it stands beside)
CPU_GROUPS = [
    ("width 128, 4-way", (1, 32), *NARROW),
    ("width 128, 4-way", (1, 64), *NARROW),
    ("width 128, 4-way", (1, 256), *NARROW),
    ("width 128, 4-way", (4, 256), *NARROW),
    ("width 504, 4-way", (1, 128), *WIDE),
    ("width 504, 4-way", (1, 256), *WIDE),
    ("width 504, 4-way", (4, 256), *WIDE),
]
CPU_SHAPE = {"vocab_size": 1024, "block_size": 256}
GPT2 = {
    "125m": {"n_layer": 12, "n_head": 12, "width": 768},
    "350m": {"n_layer": 24, "n_head": 16, "width": 1024},
    "760m": {"n_layer": 36, "n_head": 20, "width": 1280},
}
GPU_GROUPS = [
    (f"{size} {degree}-way", (8 if size == "125m" else 4, 1024), {"degree": degree, "width": width} | shape, GPT2[size])
    for size, degree, width, shape in [
        ("125m", 2, 678, {"n_layer": 12, "n_head": 12}),
        ("125m", 4, 504, {"n_layer": 12, "n_head": 12}),
        ("125m", 6, 418, {"n_layer": 12, "n_head": 12}),
        ("350m", 2, 888, {"n_layer": 24, "n_head": 16}),
        ("350m", 4, 644, {"n_layer": 24, "n_head": 16}),
        ("760m", 4, 960, {"n_layer": 24, "n_head": 16}),
    ]
]
GPU_SHAPE = {"vocab_size": 50304, "block_size": 1024}


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


def sizes_of(group: tuple, shape: dict) -> dict[str, dict]:
    _, _, kraken, standard = group
    kraken = {"architecture": "kraken"} | kraken | shape
    return {
        "kraken": kraken,
        "loop": kraken,
        "standard": {"architecture": "standard", "n_layer": kraken["n_layer"]} | standard | shape,
    }


def build(kind: str, sizes: dict, device: str) -> nn.Module:
    torch.manual_seed(0)
    module = models.build(sizes)
    if kind == "loop":
        module = LoopKraken(module.config).take(module)
    return module.to(device)


def stepper(module: nn.Module, tokens_BW, device: str):
    """A function that makes one step and returns its loss."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits_BTV = module(tokens_BW[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BW[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def batch_of(sequences: int, tokens: int, vocab_size: int, device: str):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (sequences, tokens + 1), generator=generator).to(device)


def check(sizes: dict, tokens_BW) -> None:
    """The loop has the batched model's loss and gradients, in float64 on a CPU."""
    batched, loop = build("kraken", sizes, "cpu").double(), build("loop", sizes, "cpu").double()
    losses = []
    for module in (batched, loop):
        logits_BTV = module(tokens_BW[:, :-1])
        losses.append(F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BW[:, 1:].flatten()))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-10)
    for split in range(sizes["degree"]):
        ours, theirs = batched.layers[0].mlp.up.weight.grad[split], loop.layers[0][split].up.weight.grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def timed(function, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function().item()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def measure(group: tuple, shape: dict, device: str, compiled: bool) -> dict[str, list[float]]:
    """{model: milliseconds of each step}, steps of all models in turns."""
    sizes, tokens_BW = sizes_of(group, shape), batch_of(*group[1], shape["vocab_size"], device)
    steps = {}
    for kind, own in sizes.items():
        module = build(kind, own, device)
        steps[kind] = stepper(torch.compile(module) if compiled else module, tokens_BW, device)
    warmup, runs = (GPU_WARMUP, GPU_RUNS) if device == "cuda" else (WARMUP, RUNS)
    taken = {kind: [] for kind in steps}
    for run in range(warmup + runs):
        order = list(steps)[run % len(steps) :] + list(steps)[: run % len(steps)]
        for kind in order:
            milliseconds = timed(steps[kind], device)
            if run >= warmup:
                taken[kind].append(milliseconds)
    return taken


def peak_memory(group_index: int, kind: str, device: str, compiled: bool) -> float:
    """MB that a process of its own needs for the model and its steps."""
    command = [sys.executable, __file__, "--device", device, "--memory-of", json.dumps([group_index, kind])]
    if compiled:
        command.append("--compiled")
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(group: tuple, kind: str, shape: dict, device: str, compiled: bool) -> None:
    before = peak_resident_kb()
    module = build(kind, sizes_of(group, shape)[kind], device)
    tokens_BW = batch_of(*group[1], shape["vocab_size"], device)
    step = stepper(torch.compile(module) if compiled else module, tokens_BW, device)
    for _ in range(3):
        step()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print((peak_resident_kb() - before) / 1e3)


def peak_resident_kb() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compiled", action="store_true", help="through torch.compile as well")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    gpu = options.device == "cuda"
    groups, shape = (GPU_GROUPS, GPU_SHAPE) if gpu else (CPU_GROUPS, CPU_SHAPE)
    if options.memory_of:
        index, kind = options.memory_of
        print_memory(groups[index], kind, shape, options.device, options.compiled)
        return
    rate = matrix_rate(torch.device(options.device), torch.bfloat16 if gpu else torch.float32)
    print(f"{options.device}, {torch.get_num_threads()} thread, matrix product {rate / 1e9:.0f} GFLOP/s\n")
    print("| shapes | run | model | parameters | step, ms | tokens/s | of matrix rate | peak, MB | Kraken's speed-up |")
    print("|---|---|---|---|---|---|---|---|---|")
    for index, group in enumerate(groups):
        check(sizes_of(group, shape)["kraken"], batch_of(1, 32, shape["vocab_size"], "cpu"))
        for compiled in [False, True] if options.compiled or gpu else [False]:
            print_group(index, group, shape, options.device, compiled, rate)


def print_group(index: int, group: tuple, shape: dict, device: str, compiled: bool, rate: float) -> None:
    taken = measure(group, shape, device, compiled)
    tokens, run = math.prod(group[1]), "compiled" if compiled else "eager"
    for kind, own in sizes_of(group, shape).items():
        median = float(np.median(taken[kind]))
        share = tokens * training_flops_per_token(own | {"block_size": group[1][1]}) / (median * 1e-3) / rate
        ratio, low, high = speedup(taken[kind], taken["kraken"])
        name = f"{group[0]}, {group[1][0]} x {group[1][1]} tokens"
        cells = [
            name, run, kind, f"{parameter_count(own):,}", f"{median:.1f}", f"{1e3 * tokens / median:,.0f}",
            f"{share:.0%}", f"{peak_memory(index, kind, device, compiled):,.0f}",
            "" if kind == "kraken" else f"{ratio:.2f} ({low:.2f} to {high:.2f})",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
