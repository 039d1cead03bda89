"""Whether a run may start: its price (krakenlm.price) within the budget, its disk, its devices and links there."""

import contextlib
import io
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from krakenlm import config as settings
from krakenlm.errors import InputError
from krakenlm.machine import refuse_missing_ranks
from krakenlm.price import Cost, Devices, total

# -n alone or in a cluster such as -np or -nc1, behind letters that take no value: -sSnakefile is none.
DRY_RUN = re.compile(r"--dry-?run|(-[DFSafklpt]*)n(\S*)")


def is_dry_run(command: list[str]) -> bool:
    """Whether the command has -n or --dry-run; Snakemake itself knows only after it has parsed the Snakefile."""
    return any(DRY_RUN.fullmatch(word) for word in command[1:])


def executor(command: list[str], clone: Path) -> str:
    """The executor that the command or its profile names; in a dry run Snakemake itself has another in its place.

    Raises:
        InputError: the profile is not found.
    """
    from snakemake.cli import parse_args

    # Snakemake has gone to --directory since it read the command; the profile's path is one from the clone.
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.chdir(clone):  # it says again what it reads
        try:
            _, arguments = parse_args(command[1:])
        except SystemExit:
            raise InputError(f"profile: expected one that Snakemake reads, found {said.getvalue().strip()}") from None
    return arguments.executor or "local"


def refuse_over_budget(costs: Sequence[Cost], devices: Devices, config: Mapping, command: list[str]) -> None:
    """Refuse a run that costs more than the budget.

    Raises:
        InputError: with the command that accepts the estimate.
    """
    whole, budget = total(costs, devices), config["budget"]
    gigabytes = whole.disk_bytes / 1e9
    over = []
    if whole.gpu_hours > budget["gpu_hours"]:
        over.append(
            f"budget.gpu_hours: expected at most {budget['gpu_hours']}, found an estimate of {whole.gpu_hours:.0f}"
        )
    if gigabytes > budget["disk_gb"]:
        over.append(f"budget.disk_gb: expected at most {budget['disk_gb']}, found an estimate of {gigabytes:.0f}")
    if over:
        accepted = {
            "gpu_hours": max(budget["gpu_hours"], int(whole.gpu_hours) + 1),
            "disk_gb": max(budget["disk_gb"], int(gigabytes) + 1),
        }
        others = {key: value for key, value in budget.items() if key not in accepted}
        setting = ", ".join(f"{key}: {value}" for key, value in (accepted | others).items())
        accept = accepting_command(command, f"budget={{{setting}}}")
        raise InputError(f"{'; '.join(over)}; nothing was started; to accept it: {accept}")


def refuse_missing_disk(costs: Sequence[Cost], free_bytes: float) -> None:
    """Refuse a run that needs more disk than is free.

    Raises:
        InputError: with both numbers and the largest parts.
    """
    needed = sum(cost.disk_bytes for cost in costs)
    if needed > free_bytes:
        largest = sorted(costs, key=lambda cost: -cost.disk_bytes)[:3]
        parts = ", ".join(f"{cost.what} {cost.disk_bytes / 1e9:.1f} GB" for cost in largest)
        raise InputError(
            f"results: expected {needed / 1e9:.1f} GB of free disk ({parts}), found {free_bytes / 1e9:.1f} GB; free "
            "some, or link results/ to a larger disk; nothing was started"
        )


def accepting_command(command: list[str], setting: str) -> str:
    """The user's command with one more `--config` setting, all of them behind one option, since a second one wins.

    It is no dry run, where the user's was one.
    """
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
            words += without_dry_run(word)
    kept = [word for word in given if word.partition("=")[0] != setting.partition("=")[0]]
    return shlex.join([*words, "--config", *kept, setting])


def without_dry_run(word: str) -> list[str]:
    """A word of Snakemake's command as it is in a real run: -np becomes -p, -n and --dry-run nothing."""
    found = DRY_RUN.fullmatch(word)
    if not found:
        return [word]
    others = "".join(part or "" for part in found.groups())
    return [others] if others.strip("-") else []


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
        ranks = config["evaluation"]["ranks"]
        if rule in ("perplexity", "superglue") and config["device"] == "cuda" and ranks > gpus:
            raise InputError(
                f"evaluation.ranks: expected at most this machine's {gpus} GPU(s), found {ranks}; lower it"
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
