"""The record of a run: what ran, where, with which versions, at what price."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from krakenlm.files import read_json, write_json

PACKAGES = (
    "torch", "lightning", "snakemake", "datasets", "tokenizers", "lm-eval", "transformers", "wandb", "altair",
)  # fmt: skip


def record(path: Path, config: Mapping, metrics: list[Path]) -> dict:
    """Write the record of this run beside its results and return it.

    Args:
        path: where it goes.
        config: the whole configuration.
        metrics: metrics.json of every trained model; their training seconds add up to the price.
    """
    seconds = sum(read_json(file)["timings"]["seconds"] for file in metrics)
    value = {
        "scale": config["scale"],
        "run": path.stem,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"krakenlm": own_version()},
        "command": f"snakemake --config scale={config['scale']}",
        "seconds": seconds,
        "config": config,
    }
    write_json(path, value)
    return {key: value[key] for key in ("scale", "hardware", "seconds", "versions")}


def own_version() -> str:
    return importlib.metadata.version("krakenlm")


def hardware() -> str:
    """Processor, cores and memory of this machine, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB"
