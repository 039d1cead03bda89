"""The record of a run: what ran, where, with which versions, at what price."""

import importlib.metadata
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from krakenlm.files import read_json, write_json
from krakenlm.machine import hardware

PACKAGES = (
    "torch", "lightning", "snakemake", "datasets", "tokenizers", "lm-eval", "transformers", "wandb", "altair",
)  # fmt: skip


def record(path: Path, config: Mapping, metrics: list[Path]) -> dict:
    """Write the record of this run, and beside it a configuration that makes it again; return the record.

    Args:
        path: where it goes.
        config: the whole configuration, with the models and sizes that were left out as null.
        metrics: metrics.json of every trained model; their training seconds add up to the price.
    """
    seconds = sum(read_json(file)["timings"]["seconds"] for file in metrics if file.exists())
    configuration = path.with_name(f"config-{path.stem.removeprefix('report-')}.json")
    write_json(configuration, config)
    value = {
        "scale": config["scale"],
        "run": path.stem,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"krakenlm": own_version()},
        "command": f"snakemake --configfile {configuration}",
        "seconds": seconds,
        "config": config,
    }
    write_json(path, value)
    return {key: value[key] for key in ("scale", "hardware", "seconds", "versions")}


def own_version() -> str:
    return importlib.metadata.version("krakenlm")
