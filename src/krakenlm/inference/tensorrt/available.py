"""Whether TensorRT-LLM can be used here, and what is missing where it cannot. Imports neither it nor torch."""

import importlib.metadata
import importlib.util
import platform
import re
import sys

from krakenlm.errors import InputError
from krakenlm.machine import query_gpus

RELEASE = "0.12.0"
# Compute capabilities that release 0.12 has all kernels for: Ampere, Ada and Hopper; it knows no Blackwell.
FIRST_CAPABILITY, LAST_CAPABILITY = (8, 0), (9, 0)


def missing(device: str, ranks: int, environments: bool) -> list[str]:
    """What is missing for engines of up to `ranks` ranks, each in words; empty where nothing is.

    `environments`: Snakemake makes each rule's environment, so this Python needs no TensorRT-LLM.
    """
    if device != "cuda":
        return [f"device cuda (found {device})"]
    found = missing_hardware(ranks)
    if not environments and (software := missing_software()):
        found.append(f"{software}, or environments made by Snakemake (--profile profiles/tensorrt-llm)")
    return found


def explain(missing: list[str]) -> str:
    """The rest of a line that names the engine."""
    return f"; TensorRT-LLM would need {', and '.join(missing)}" if missing else ""


def missing_hardware(ranks: int) -> list[str]:
    """What this machine lacks to run engines of `ranks` ranks, each in words."""
    missing = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        missing.append(f"Linux on x86_64 (found {sys.platform} on {platform.machine()})")
    capabilities = query_gpus("compute_cap")
    usable = [each for each in capabilities if FIRST_CAPABILITY <= as_numbers(each) <= LAST_CAPABILITY]
    if len(usable) < ranks:
        found = f"capabilities {', '.join(capabilities)}" if capabilities else "none"
        missing.append(f"{ranks} NVIDIA GPU(s) of compute capability 8.0 to 9.0 (found {found})")
    return missing


def as_numbers(capability: str) -> tuple[int, ...]:
    """(8, 0) of 8.0; () where the driver does not know."""
    return tuple(int(part) for part in capability.split(".")) if re.fullmatch(r"\d+\.\d+", capability) else ()


def missing_software() -> str:
    """What this Python lacks to build and run engines, in words; empty where nothing is missing."""
    if importlib.util.find_spec("tensorrt_llm") is None:
        return f"tensorrt_llm {RELEASE} in this Python ({sys.executable}; found none)"
    found = importlib.metadata.version("tensorrt_llm")
    return "" if found == RELEASE else f"tensorrt_llm {RELEASE} (found {found})"


def refuse_without_tensorrt_llm() -> None:
    """Refuse to go on in a Python without TensorRT-LLM.

    Raises:
        InputError: saying what is missing.
    """
    if missing := missing_software():
        raise InputError(f"engine: expected {missing}; docs/tensorrt-llm.md says how to install it")
