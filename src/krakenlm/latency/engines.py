"""Trained models, sharded: each generates what its whole model generates, and is timed."""

import re
import statistics as stdlib
import time
from pathlib import Path

import numpy as np
import torch

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.files import read_json, write_table
from krakenlm.inference.cache import Cache
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import as_engine, check_shards, load_rank
from krakenlm.latency.statistics import Watch, drift
from krakenlm.latency.turns import INTERLEAVE, wait_for_ranks
from krakenlm.machine import refuse_missing_ranks
from krakenlm.models.collectives import ALONE, Collectives
from krakenlm.text.store import TokenStore
from krakenlm.values import Count, Natural

COLUMNS = [
    "model", "architecture", "degree", "tp", "prompts", "prompt_tokens", "new_tokens", "identical",
    "max_logit_difference", "ttft_ms_median", "ttft_ms_std", "tokens_per_second", "device", "link", "engine",
    "dtype", "runs", "interleave", "data", "seed", "scale", "run", "drift", "drifted",
    "other_load", "clock_mhz", "throttled"
]  # fmt: skip


def measure_engines(
    entries: list[tuple[str, Path, Path]],
    *,
    tokens_dir: str | Path,
    out_csv: str | Path,
    scale: str,
    run: str,
    tp: Count,
    prompts: Count,
    prompt_tokens: Count,
    new_tokens: Count,
    runs: Count,
    warmup: Natural,
    threads: Count,
) -> list[dict]:
    """Compare and time every engine, given as (model's name, model's folder, folder of shards); write the table.

    Prompts are the validation tokens from evenly spread places. Engines of equal `tp` take turns run by run.

    Raises:
        InputError: too few tokens, cores or GPUs, or shards of another number of ranks.
    """
    refuse_missing_ranks("tp", tp, threads, torch.cuda.device_count())
    store = TokenStore(tokens_dir)
    windows = prompt_windows(store.tokens("val"), prompts, prompt_tokens, tokens_dir)
    for _, _, shards in entries:
        check_shards(shards, int(shards.name.removeprefix("tp")))
    rows = []
    for world in sorted({int(shards.name.removeprefix("tp")) for _, _, shards in entries}):
        group = [entry for entry in entries if entry[2].name == f"tp{world}"]
        measured = run_ranks(
            "krakenlm.latency.engines:measure_on_rank",
            {
                "entries": [[str(model), str(shards)] for _, model, shards in group],
                "prompts": windows,
                "new_tokens": new_tokens,
                "runs": runs,
                "warmup": warmup,
            },
            world=world,
            threads=threads,
        )
        given = {"tp": world, "prompts": prompts, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        given |= {"engine": "torch", "runs": runs, "interleave": INTERLEAVE, "scale": scale}
        given |= {"data": store.manifest["data"], "device": machine.device(), "link": measured["link"]}
        for (name, model, shards), row in zip(group, measured["rows"], strict=True):
            described = {
                "dtype": read_json(shards / "config.json")["dtype"],
                "model": name,
                "run": f"{run}/models/{name}/{model.name}",
                **describe(model),
            }
            rows.append(given | described | row)
    return write_table(out_csv, rows, COLUMNS)


def prompt_windows(tokens, prompts: int, length: int, where: str | Path) -> list[list[int]]:
    if len(tokens) < prompts * length:
        raise InputError(
            f"{where}: expected at least {prompts * length} validation tokens (engines.prompts x "
            f"engines.prompt_tokens), found {len(tokens)}; lower one of them"
        )
    return [tokens[start : start + length].tolist() for start in range(0, prompts * length, length)]


def describe(model: Path) -> dict:
    config = models.load_config(model).to_dict()
    # The folder's, seed0-..., is that of the other tables, while an imported model keeps what it was trained with.
    of_folder = re.fullmatch(r"seed(\d+)-.*", model.name)
    seed = int(of_folder[1]) if of_folder else read_json(model / "metrics.json")["seed"]
    return {"architecture": config["architecture"], "degree": config.get("degree", ""), "seed": seed}


def measure_on_rank(
    comm: Collectives,
    device: str,
    entries: list[list[str]],
    prompts: list[list[int]],
    new_tokens: int,
    runs: int,
    warmup: int,
) -> dict:
    """Body of one rank: every engine's generation, compared by rank 0 with the whole model's; then the timing."""
    prompts_BT = torch.tensor(prompts, device=device)
    engines = [as_engine(load_rank(shards, comm.rank, comm.world, device)) for _, shards in entries]
    rows = []
    for engine, (model, _) in zip(engines, entries, strict=True):
        sharded = sequences(engine, prompts_BT, new_tokens, comm)
        logits_BTV = engine(sharded, comm)
        if comm.rank == 0:
            rows.append(compare(models.load_model(model).to(device), prompts_BT, new_tokens, sharded, logits_BTV))
    watch = Watch()
    times = time_in_turns(engines, prompts_BT, new_tokens, comm, device, runs, warmup)
    state = watch.stop(comm, device)
    rows = [row | time | state for row, time in zip(rows, times, strict=comm.rank == 0)]
    link = "none" if comm.world == 1 else "NCCL" if device.startswith("cuda") else "gloo over loopback"
    return {"rows": rows, "link": link}


def sequences(module: torch.nn.Module, prompts_BT: torch.Tensor, new_tokens: int, comm: Collectives) -> torch.Tensor:
    """Prompts and what follows them, (B, T + new_tokens)."""
    return torch.cat([prompts_BT, torch.stack(list(generate(module, prompts_BT, new_tokens, comm)), dim=1)], dim=1)


def compare(whole: torch.nn.Module, prompts_BT, new_tokens: int, sharded_BT, logits_BTV) -> dict:
    """Whether the whole model generates the same tokens, and the largest difference of any logit on the way."""
    own_BT = sequences(whole, prompts_BT, new_tokens, ALONE)
    difference = (whole(sharded_BT) - logits_BTV).abs().max().item()
    return {"identical": torch.equal(own_BT, sharded_BT), "max_logit_difference": difference}


def time_in_turns(engines: list, prompts_BT, new_tokens: int, comm, device: str, runs: int, warmup: int) -> list[dict]:
    """Time to first token and decoding rate of each engine, prompts one at a time, engines in turns."""
    caches = [Cache(engine, 1, prompts_BT.shape[1] + new_tokens) for engine in engines]
    first: list[list[float]] = [[] for _ in engines]
    rest: list[list[float]] = [[] for _ in engines]
    for run in range(warmup + runs):
        prompt_1T = prompts_BT[run % len(prompts_BT)][None]
        for turn in range(len(engines)):
            index = (run + turn) % len(engines)
            wait_for_ranks(comm, device)
            start = time.perf_counter()
            moments = []
            for token_B in generate(engines[index], prompt_1T, new_tokens, comm, caches[index]):
                token_B.tolist()  # on the host
                moments.append(time.perf_counter())
            if run >= warmup:
                first[index].append(1e3 * (moments[0] - start))
                rest[index].append((new_tokens - 1) / (moments[-1] - moments[0]) if new_tokens > 1 else 0.0)
    return [
        {
            "ttft_ms_median": stdlib.median(firsts),
            "ttft_ms_std": stdlib.stdev(firsts) if len(firsts) > 1 else 0.0,
            "tokens_per_second": stdlib.median(rates) if new_tokens > 1 else "",
            **drift(np.asarray(firsts)),
        }
        for firsts, rates in zip(first, rest, strict=True)
    ]
