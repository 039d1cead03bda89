"""What a run will cost, before it starts, and whether this machine has what it needs.

The figures are estimates from stated assumptions, good for deciding whether to start, not for a paper: FLOPs from the
sizing arithmetic, an A100's dense bf16 peak at an assumed share of it, disk from bytes per token and per parameter.
"""

import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from krakenlm import config as settings
from krakenlm.errors import InputError
from krakenlm.machine import refuse_missing_ranks

# NVIDIA A100 datasheet: 312 TFLOP/s dense bf16. The share of it that training reaches is an assumption.
GPU_FLOPS, GPU_SHARE = 312e12, 0.40
# One core of a current laptop or server in float32 matrix products, through small layers: an assumption.
CORE_FLOPS = 30e9
# A timing job with its process starts, weights and runs; an evaluation of one model: assumptions.
TIMING_HOURS, EVALUATION_HOURS = 0.25, 0.5
BYTES_PER_TOKEN_OF_TEXT = 4.6
# The index and the order take 32 bytes a document, here one of 640 bytes; longer ones leave a smaller share.
INDEX_SHARE = 0.05
# A checkpoint has weights and AdamW's two moments in float32; three at most lie on the disk at once.
CHECKPOINT_BYTES, CHECKPOINTS = 12, 3
VOCABULARY_OF_GPT2 = 50304


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one part of a run: GPU-hours, core-hours, bytes of disk."""

    what: str
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    disk_bytes: float = 0.0


def all_jobs(config: Mapping) -> list[tuple[str, dict]]:
    """Every job that costs something in a run from nothing, as (rule, wildcards)."""
    trained = [
        (rule, {"model": model, "seed": str(seed)})
        for rule in ("train", "superglue", "shard")
        for model, seed in settings.model_seeds(config)
        if rule != "train" or model in settings.trained(config)
    ]
    timed = [
        ("ttft", {"size": size, "tp": str(tp)}) for size in config["latency"]["sizes"] for tp in config["latency"]["tp"]
    ]
    return [("corpus", {}), ("tokens", {}), *trained, ("engines", {}), *timed]


def estimate(config: Mapping, jobs: list[tuple[str, dict]]) -> list[Cost]:
    """Cost of each job that costs something, models in the order of their first job."""
    return [cost for rule, wildcards in jobs if (cost := job_cost(config, rule, wildcards)) is not None]


def job_cost(config: Mapping, rule: str, wildcards: Mapping) -> Cost | None:
    """Cost of one job, None where it is next to nothing."""
    model, gpus = wildcards.get("model"), uses_gpus(config)
    if rule == "train":
        return training_cost(config, model, wildcards["seed"])
    if rule == "superglue":
        return Cost(f"evaluation of {model}", gpu_hours=EVALUATION_HOURS if gpus else 0.0)
    if rule == "shard" and model in settings.trained(config):
        return Cost(f"engine of {model}", disk_bytes=4 * parameters(config, model))
    if rule == "engines":
        return Cost("timing of engines", gpu_hours=TIMING_HOURS * config["engines"]["tp"] if gpus else 0.0)
    if rule == "tensorrt_build_shape":
        size, architecture, tp = (
            config["latency"]["sizes"][wildcards["size"]],
            wildcards["architecture"],
            wildcards["tp"],
        )
        return Cost(
            f"engine of {wildcards['size']}, {architecture}", disk_bytes=engine_bytes(config, size, architecture, tp)
        )
    if rule in ("ttft", "tensorrt_ttft"):
        tp = int(wildcards["tp"])
        return Cost(f"TTFT of {wildcards['size']}, tp {tp}", gpu_hours=TIMING_HOURS * tp if gpus else 0.0)
    if rule == "corpus":
        return Cost(
            "text", disk_bytes=settings.text_bytes(config["text"]) * (3 if config["text"]["source"] == "hub" else 1)
        )
    if rule == "tokens":
        # Two bytes a token; shards and the files that are put together of them are on the disk at once.
        return Cost("tokens", disk_bytes=2 * 2 * settings.text_bytes(config["text"]) / BYTES_PER_TOKEN_OF_TEXT)
    return None


def corpus_bytes(text: Mapping) -> float:
    """Bytes that the corpus stage writes: an index, the embedded stories, what it fetches from the hub."""
    index = settings.text_bytes(text) * INDEX_SHARE
    return index if text["source"] == "files" else index + settings.text_bytes(text)


def uses_gpus(config: Mapping) -> bool:
    return any(settings.recipe(config, model)["gpus"] for model in settings.trained(config))


def sized(config: Mapping, model: str) -> dict:
    """The model's configuration with the vocabulary that its tokenizer will have."""
    vocabulary = settings.text_settings(config).get("vocabulary", VOCABULARY_OF_GPT2)
    return settings.architecture(config, model) | {"vocab_size": (vocabulary + 63) // 64 * 64}


def parameters(config: Mapping, model: str) -> int:
    from krakenlm.models.sizing import parameter_count

    return parameter_count(sized(config, model))


def training_cost(config: Mapping, model: str, seed: str) -> Cost:
    from krakenlm.models.sizing import training_flops_per_token

    recipe = settings.recipe(config, model)
    tokens = recipe["steps"] * recipe["batch_sequences"] * config["block_size"]
    flops = tokens * training_flops_per_token(sized(config, model))
    disk = parameters(config, model) * (4 + CHECKPOINT_BYTES * CHECKPOINTS)
    what = f"training of {model}, seed {seed}: {tokens:.2e} tokens, {flops:.1e} FLOPs"
    if recipe["gpus"]:
        return Cost(what, gpu_hours=flops / (GPU_FLOPS * GPU_SHARE) / 3600, disk_bytes=disk)
    return Cost(what, core_hours=flops / CORE_FLOPS / 3600, disk_bytes=disk)


def engine_bytes(config: Mapping, size: Mapping, architecture: str, tp: str) -> int:
    """Bytes of all ranks' engines of a shape: its weights."""
    from krakenlm.models.sizing import parameter_count, sizes_of

    latency = config["latency"]
    shape = {"n_layer": size["n_layer"], "vocab_size": latency["vocab_size"], "block_size": max(latency["contexts"])}
    sizes = shape | sizes_of(architecture, size["width"], size["n_head"], int(tp))
    return parameter_count(sizes) * (4 if latency["dtype"] == "float32" else 2)


def total(costs: list[Cost]) -> Cost:
    return Cost(
        "in all",
        sum(cost.gpu_hours for cost in costs),
        sum(cost.core_hours for cost in costs),
        sum(cost.disk_bytes for cost in costs),
    )


def describe(costs: list[Cost]) -> str:
    """The estimate as a small table, one line per part and one in all."""
    whole = total(costs)
    lines = ["estimated price (A100 at 40% of its peak, CPU cores at 30 GFLOP/s: assumptions)"]
    for cost in [*costs, whole]:
        small = cost.gpu_hours < 0.05 and cost.core_hours < 0.005 and cost.disk_bytes < 5e7
        if small and cost is not whole:
            continue
        lines.append(
            f"  {cost.gpu_hours:9.1f} GPU-hours {cost.core_hours:7.2f} core-hours {cost.disk_bytes / 1e9:8.2f} GB  "
            f"{cost.what}"
        )
    return "\n".join(lines)


def is_dry_run(command: list[str]) -> bool:
    """Whether the command has -n or --dry-run; Snakemake itself knows only after it has parsed the Snakefile."""
    return any(word in ("--dry-run", "--dryrun") or re.fullmatch(r"-[A-Za-z]*n[A-Za-z]*", word) for word in command[1:])


def refuse_over_budget(costs: list[Cost], config: Mapping, command: list[str]) -> None:
    """Refuse a run that costs more than the budget.

    Raises:
        InputError: with the command that accepts the estimate.
    """
    whole, budget = total(costs), config["budget"]
    gigabytes = whole.disk_bytes / 1e9
    over = []
    if whole.gpu_hours > budget["gpu_hours"]:
        over.append(
            f"budget.gpu_hours: expected at most {budget['gpu_hours']}, found an estimate of {whole.gpu_hours:.0f}"
        )
    if gigabytes > budget["disk_gb"]:
        over.append(f"budget.disk_gb: expected at most {budget['disk_gb']}, found an estimate of {gigabytes:.0f}")
    if over:
        hours = max(budget["gpu_hours"], int(whole.gpu_hours) + 1)
        disk = max(budget["disk_gb"], int(gigabytes) + 1)
        accept = accepting_command(command, f"budget={{gpu_hours: {hours}, disk_gb: {disk}}}")
        raise InputError(f"{'; '.join(over)}; nothing was started; to accept it: {accept}")


def refuse_missing_disk(costs: list[Cost], free_bytes: float) -> None:
    """Refuse a run that needs more disk than is free.

    Raises:
        InputError: with both numbers and the largest parts.
    """
    needed = total(costs).disk_bytes
    if needed > free_bytes:
        largest = sorted(costs, key=lambda cost: -cost.disk_bytes)[:3]
        parts = ", ".join(f"{cost.what.split(':')[0]} {cost.disk_bytes / 1e9:.1f} GB" for cost in largest)
        raise InputError(
            f"results: expected {needed / 1e9:.1f} GB of free disk ({parts}), found {free_bytes / 1e9:.1f} GB; free "
            "some, or link results/ to a larger disk; nothing was started"
        )


def accepting_command(command: list[str], setting: str) -> str:
    """The user's command with one more `--config` setting, all of them behind one option, since a second one wins."""
    words, given, in_config = ["snakemake"], [], False
    for word in command[1:]:
        if word in ("--config", "-C"):
            in_config = True
        elif word.startswith("--config=") or (word.startswith("-C") and "=" in word):
            given.append(word.removeprefix("--config=").removeprefix("-C"))
        elif in_config and not word.startswith("-"):
            given.append(word)
        else:
            in_config = False
            words.append(word)
    kept = [word for word in given if word.partition("=")[0] != setting.partition("=")[0]]
    return shlex.join([*words, "--config", *kept, setting])


def refuse_missing_tensorrt_llm(jobs: list[tuple[str, dict]], missing: list[str]) -> None:
    """Refuse a run whose jobs need TensorRT-LLM, where it cannot be used.

    Raises:
        InputError: saying what is missing.
    """
    if missing and any(rule.startswith("tensorrt_") for rule, _ in jobs):
        raise InputError(
            f"engine: expected {', and '.join(missing)} for tensorrt_llm; provide it, or choose another engine "
            "(--config engine=torch); docs/tensorrt-llm.md says more"
        )


def refuse_missing_devices(config: Mapping, jobs: list[tuple[str, dict]], gpus: int) -> None:
    """Refuse a run whose jobs need more GPUs, or ranks than there are GPUs or cores, on this machine.

    Raises:
        InputError: naming the key.
    """
    computing = [rule for rule, _ in jobs if rule in ("perplexity", "superglue", "engines", "ttft")]
    if config["device"] == "cuda" and computing and not gpus:
        raise InputError(
            "device: expected an NVIDIA GPU on this machine for cuda, found none; choose cpu or another scale "
            "(--config scale=tiny)"
        )
    for rule, wildcards in jobs:
        if rule == "train":
            wanted = settings.recipe(config, wildcards["model"])["gpus"]
            if wanted > gpus:
                raise InputError(
                    f"training.gpus: expected at most this machine's {gpus} GPU(s), found {wanted} for "
                    f"{wildcards['model']}; lower it or choose another scale (--config scale=tiny needs none)"
                )
        if rule in ("ttft", "engines"):
            section = "latency" if rule == "ttft" else "engines"
            tp = int(wildcards.get("tp", config["engines"]["tp"]))
            refuse_missing_ranks(f"{section}.tp", tp, config[section]["threads"], gpus)


def missing_links(config: Mapping, jobs: list[tuple[str, dict]]) -> list[str]:
    """One line for each of `latency.links` that this machine does not allow, where a job wants it."""
    from krakenlm.latency.links import LOOPBACK, LinkError, network

    if not any(rule == "ttft" and int(wildcards["tp"]) > 1 for rule, wildcards in jobs):
        return []
    lines = []
    for link in config["latency"]["links"]:
        try:
            if link != LOOPBACK:
                with network(link, world=2):
                    pass
        except LinkError as error:
            lines.append(f"latency.links: {link} gets no rows: {error}")
    return lines


def leave_to_successor(stage: str) -> None:
    """Stop a stage whose Snakemake has died before the stage came to write.

    A later run does its work, perhaps has done it while this one waited for the lock: writing again would give
    finished files new times and make everything after them look out of date.

    Raises:
        InputError: the Snakemake that started this stage is gone.
    """
    identity = os.environ.get("KRAKENLM_SNAKEMAKE", "")
    host, _, rest = identity.partition(":")
    if host != socket.gethostname():
        return
    process = int(rest.split(":")[0])
    if not Path(f"/proc/{process}").exists() or settings.process_identity(process) != identity:
        raise InputError(f"{stage}: the snakemake that started this stage has ended; a later run does its work")
