"""What `auto` stands for on this machine, and what the stages find in their environment."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from krakenlm.config.models import WATCHING
from krakenlm.errors import InputError
from krakenlm.machine import count_gpus

SCALES = ("tiny", "single-gpu", "paper")


def resolve_scale(scale: str, gpus: int) -> str:
    """The scale that `auto` stands for on a machine with `gpus` NVIDIA GPUs; any other scale is itself."""
    if scale != "auto":
        return scale
    return "paper" if gpus >= 4 else "single-gpu" if gpus >= 1 else "tiny"


def auto_scale(main_process: bool) -> str:
    """What `auto` stands for here: found out by the main process, inherited by the jobs that parse the config anew.

    Raises:
        InputError: a job does not find the main process's answer.
    """
    if main_process:
        os.environ["KRAKENLM_SCALE"] = resolve_scale("auto", count_gpus())
    if "KRAKENLM_SCALE" not in os.environ:
        raise InputError(
            "scale: expected the main process to have resolved auto, found no KRAKENLM_SCALE in this job's "
            "environment; name the scale (--config scale=tiny)"
        )
    return os.environ["KRAKENLM_SCALE"]


def find_engine(wanted: str, missing: list[str], main_process: bool) -> str:
    """The engine: `torch` or `tensorrt_llm`; `auto` is TensorRT-LLM where it lacks nothing.

    Found out by the main process, inherited by the jobs that parse the config anew.

    Raises:
        InputError: a job does not find the main process's answer.
    """
    if wanted != "auto":
        return wanted
    if main_process:
        os.environ["KRAKENLM_ENGINE"] = "torch" if missing else "tensorrt_llm"
    if "KRAKENLM_ENGINE" not in os.environ:
        raise InputError(
            "engine: expected the main process to have resolved auto, found no KRAKENLM_ENGINE in this job's "
            "environment; name the engine (--config engine=torch)"
        )
    return os.environ["KRAKENLM_ENGINE"]


def most_ranks(config: Mapping) -> int:
    """Ranks of the widest engine that is timed."""
    return max(config["engines"]["tp"], *config["latency"]["tp"])


def stage_environment(config: Mapping, reproduction: str, local: bool) -> dict[str, str]:
    """Environment variables for the stages. None of them changes a result."""
    scale = config["scale"]
    variables = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        "WANDB_PROJECT": config["wandb"]["project"],
        "WANDB_RUN_GROUP": f"{scale}-{reproduction}",
        "WANDB_DIR": os.path.abspath(f"results/{scale}"),
        # Not in a rule's parameters: how a training is watched is no reason to train again.
        "KRAKENLM_WATCH": json.dumps({key: config["training"][key] for key in WATCHING}),
    }
    if config["device"] == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if config["wandb"]["mode"] != "auto":
        variables["WANDB_MODE"] = config["wandb"]["mode"]
    if local:
        variables["KRAKENLM_SNAKEMAKE"] = process_identity(os.getpid())
    return variables


def process_identity(process: int) -> str:
    """`host:process:start`, which no later process with the same number has."""
    start = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return f"{socket.gethostname()}:{process}:{start}"
