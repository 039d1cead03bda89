"""Where a run of Snakemake stands: what is done, running, left and failed.

Snakemake's main process leaves its jobs in results/.run.json as it starts (`record`); what became of each is read in
its own log, so it is known while it runs and afterwards, on one machine and on a cluster.
"""

import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from krakenlm.config import process_identity
from krakenlm.errors import InputError
from krakenlm.files import read_json, write_json

RUN_FILE = ".run.json"
DONE, RUNNING, FAILED, LEFT = "done", "running", "failed", "left"
LINES_OF_A_FAILURE, LINE_WIDTH = 10, 160
# Snakemake's log: `Job 8: message` of a job that starts, or of a rule without a message a paragraph that begins with
# its name; `Finished jobid: 8 (Rule: train)`; a paragraph that begins with `Error in rule train:`.
STARTED, FINISHED = re.compile(r"Job (\d+): "), re.compile(r"Finished jobid: (\d+)\b")
PARAGRAPHS = {RUNNING: re.compile(r"(local)?rule \w+:"), FAILED: re.compile(r"Error in rule \w+")}
PARAGRAPHS_JOB = re.compile(r"\s+jobid: (\d+)\b")


@dataclass(frozen=True)
class Job:
    """A job of the run: its rule, what it says of itself, the log of its stage, and how it stands."""

    rule: str
    message: str
    log: Path | None
    state: str


@dataclass(frozen=True)
class Status:
    """A run: its scale, when it began (seconds since 1970), whether its Snakemake is at work, and its jobs."""

    scale: str
    started: float
    at_work: bool
    jobs: list[Job]

    def having(self, state: str) -> list[Job]:
        return [job for job in self.jobs if job.state == state]


def record(results: Path, scale: str, snakemake_log: str, jobs: Iterable[Mapping], finished: Mapping[str, int]) -> None:
    """Leave what `read` needs.

    Args:
        results: folder of results.
        snakemake_log: Snakemake's own log of this run.
        jobs: id, rule, message and log (None where it has none) of each job that this run is to do.
        finished: how many jobs of each rule have nothing to do.
    """
    write_json(
        results / RUN_FILE,
        {
            "scale": scale,
            "started": time.time(),
            "snakemake": process_identity(os.getpid()),
            "snakemake_log": snakemake_log,
            "jobs": list(jobs),
            "finished": dict(finished),
        },
    )


def read(results: Path) -> Status:
    """How the newest run in a folder of results stands.

    Raises:
        InputError: there is none.
    """
    if not (results / RUN_FILE).exists():
        raise InputError(f"{results}: expected what a run leaves there, found none; start one with `snakemake`")
    run = read_json(results / RUN_FILE)
    root = results.resolve().parent
    at_work = is_at_work(run["snakemake"])
    states = states_in(root / run["snakemake_log"])
    jobs = [Job(rule, rule, None, DONE) for rule, count in run["finished"].items() for _ in range(count)]
    for job in run["jobs"]:
        state = states.get(job["id"], LEFT)
        if state == RUNNING and not at_work:
            state = FAILED
        jobs.append(Job(job["rule"], job["message"], job["log"] and root / job["log"], state))
    return Status(run["scale"], run["started"], at_work, jobs)


def is_at_work(snakemake: str) -> bool:
    """Whether the Snakemake of this identity still runs; where it ran on another machine nobody knows, so yes."""
    host, _, rest = snakemake.partition(":")
    if host != socket.gethostname():
        return True
    process = int(rest.split(":")[0])
    return Path(f"/proc/{process}").exists() and process_identity(process) == snakemake


def states_in(snakemake_log: Path) -> dict[int, str]:
    """What the log says last of each job it names; a retry is running again."""
    states: dict[int, str] = {}
    if not snakemake_log.exists():
        return states
    paragraph = None
    for line in snakemake_log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := STARTED.match(line):
            states[int(found[1])] = RUNNING
        elif found := FINISHED.match(line):
            states[int(found[1])] = DONE
        elif paragraph and (found := PARAGRAPHS_JOB.match(line)):
            states[int(found[1])], paragraph = paragraph, None
        else:
            paragraph = next((state for state, begins in PARAGRAPHS.items() if begins.match(line)), paragraph)
    return states


def describe(status: Status) -> list[str]:
    """The status as lines: a table of rules, then what runs with its progress, and what failed with its log's end."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.started))
    lines = [f"scale {status.scale}, started {began}, {'at work' if status.at_work else 'ended'}"]
    states = (DONE, RUNNING, LEFT, FAILED)
    counts = {rule: Counter(job.state for job in status.jobs if job.rule == rule) for rule in rules(status)}
    width = max(map(len, counts), default=0)
    lines.append(f"{'':{width}}" + "".join(f"{state:>9}" for state in states))
    lines += [
        f"{rule:{width}}" + "".join(f"{count[state] or '':>9}" for state in states) for rule, count in counts.items()
    ]
    lines.append(f"{'':{width}}" + "".join(f"{len(status.having(state)):>9}" for state in states))
    for job in status.having(RUNNING):
        lines.append(f"running: {job.message}" + "".join(f"\n    {line}" for line in last_lines(job.log, 1)))
    for job in status.having(FAILED):
        lines.append(f"failed: {job.message}" + (f" ({job.log})" if job.log else ""))
        lines += [f"    {line}" for line in last_lines(job.log, LINES_OF_A_FAILURE)]
    return lines


def rules(status: Status) -> list[str]:
    return list(dict.fromkeys(job.rule for job in status.jobs))


def last_lines(path: Path | None, count: int) -> list[str]:
    """The last lines of a log, cut to a screen's width; none where there is no log yet."""
    if path is None or not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = deque((line.rstrip() for line in file if line.strip()), maxlen=count)
    return [line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 1] + "…" for line in lines]
