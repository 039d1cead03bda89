"""Where the reproduction stands: what is done, running, left and failed; and a run of another target after it.

Snakemake's main process leaves its jobs in results/.run.json as it starts, those of another target than the whole in
results/.part.json (`record`); what became of each is read in its own log, so it is known while it runs and afterwards,
on one machine and on a cluster.
"""

import os
import re
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from krakenlm.config import process_identity
from krakenlm.errors import InputError
from krakenlm.files import held_locks, read_json, write_json

WHOLE, PART = ".run.json", ".part.json"
REPORT_SO_FAR = "report-so-far.html"  # of a run that failed; beside report.html, and never taken for it
DONE, RUNNING, FAILED, LEFT = "done", "running", "failed", "left"
LINES_OF_A_FAILURE, LINE_WIDTH = 10, 160
# Snakemake's log: `Job 8: message` of a job that starts, or of a rule without a message a paragraph that begins with
# its name; `Finished jobid: 8 (Rule: train)`; a paragraph that begins with `Error in rule train:`.
STARTED, FINISHED = re.compile(r"Job (\d+): "), re.compile(r"Finished jobid: (\d+)\b")
PARAGRAPHS = {RUNNING: re.compile(r"(local)?rule \w+:"), FAILED: re.compile(r"Error in rule \w+")}
PARAGRAPHS_JOB = re.compile(r"\s+jobid: (\d+)\b")
# `Command '... > results/tiny/corpus.log 2>&1' died with <Signals.SIGKILL: 9>.`, or, where a shell of its own has seen
# the signal, `returned non-zero exit status 137.`
ENDED = re.compile(r"> (\S+) 2>&1' (?:died with <Signals\.(SIG\w+)|returned non-zero exit status (\d+))")
SIGNALLED = 128  # an exit status above it is that and the signal's number


@dataclass(frozen=True)
class Job:
    """A job of a run.

    output: the first file that it makes, which no other job of the run does. message: what it says of itself.
    log: of its stage. ended: why, of a failed job that did not end by itself: `killed (SIGKILL)`, or `interrupted`.
    """

    rule: str
    message: str
    output: str
    log: Path | None
    state: str
    ended: str = ""


@dataclass(frozen=True)
class Status:
    """A run: of which targets ('' for the whole reproduction), its scale, when it began (seconds since 1970), whether
    its Snakemake is at work, its jobs, and what its report is made from (`record`), None where it makes none.
    """

    targets: str
    scale: str
    started: float
    at_work: bool
    jobs: list[Job]
    report: Mapping | None = None

    def having(self, state: str) -> list[Job]:
        return [job for job in self.jobs if job.state == state]


def record(
    results: Path,
    scale: str,
    snakemake_log: str,
    jobs: Sequence[Mapping],
    finished: Sequence[Mapping],
    targets: str,
    report: Mapping | None = None,
) -> None:
    """Leave what `read` needs. A run that has no job to do leaves what an earlier one left.

    Args:
        results: folder of results.
        snakemake_log: Snakemake's own log of this run.
        jobs: id, rule, message, output and log (None where it has none) of each job that this run is to do.
        finished: rule and output of each that has nothing to do.
        targets: what was asked for, '' for the whole reproduction.
        report: what the report is made from, for `krakenlm report-so-far`; None where the run makes none. `inputs` has
            for each of its options {file: the output by which the job that makes the file is known}, `config` the
            whole configuration, `run` where the record of the run goes, below the results.
    """
    if not jobs:
        return
    whole, part = stored(results / WHOLE), stored(results / PART)
    if not targets:
        (results / PART).unlink(missing_ok=True)
    elif whole and part and whole["scale"] == part["scale"]:
        write_json(results / WHOLE, whole | after_part(results, whole, part))
    write_json(
        results / (PART if targets else WHOLE),
        {
            "targets": targets,
            "scale": scale,
            "started": time.time(),
            "snakemake": process_identity(os.getpid()),
            "snakemake_log": snakemake_log,
            "jobs": list(jobs),
            "finished": list(finished),
            "report": report,
        },
    )


def after_part(results: Path, whole: Mapping, part: Mapping) -> dict:
    """The jobs of the whole with what became of a part's, whose record goes."""
    later = {}
    stands = read_run(results, part, at_work=False).jobs
    for job, stood in zip([*part["finished"], *part["jobs"]], stands, strict=True):
        later[stood.output] = job | {"state": stood.state, "ended": stood.ended}
    jobs = [later.get(job["output"], job | {"state": DONE}) for job in whole["finished"]]
    jobs += [later.get(job["output"], job) for job in whole["jobs"]]
    finished = [job for job in jobs if job.get("state") == DONE]
    return {"finished": finished, "jobs": [job for job in jobs if job not in finished]}


def read(results: Path) -> list[Status]:
    """How the newest run of the whole reproduction stands, and the newest of other targets where one came after it.

    A job of the reproduction that a later run of the same scale has too stands as it does there.

    Raises:
        InputError: there is none.
    """
    records = [stored(results / name) for name in (WHOLE, PART)]
    runs = [read_run(results, record, is_at_work(record["snakemake"])) for record in records if record]
    if not runs:
        raise InputError(f"{results}: expected what a run leaves there, found none; start one with `snakemake`")
    if len(runs) == 1:
        return runs
    whole, part = runs
    # Tables that all scales share, such as results/ttft.csv, are of each scale's run another one.
    later = {job.output: job for job in part.jobs} if part.scale == whole.scale else {}
    return [replace(whole, jobs=[later.get(job.output, job) for job in whole.jobs]), part]


def stored(path: Path) -> dict | None:
    """What `record` has left at `path`; None where there is nothing, or what an earlier version left."""
    run = read_json(path) if path.exists() else {}
    return run if "targets" in run else None


def read_run(results: Path, run: Mapping, at_work: bool) -> Status:
    """A run by its record and its Snakemake's log; jobs in the record's order, those that it found done first."""
    root = results.resolve().parent
    log = root / run["snakemake_log"]
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    states, signals = states_in(lines), signals_in(lines)
    jobs = [Job(job["rule"], job["rule"], job["output"], None, DONE) for job in run["finished"]]
    for job in run["jobs"]:
        # A job of a later part stands as it stood there.
        state, ended = job.get("state", states.get(job["id"], LEFT)), job.get("ended", "")
        if state == RUNNING and not at_work:
            state, ended = FAILED, "interrupted"
        elif state == FAILED and "state" not in job and job["log"] in signals:
            ended = f"killed ({signals[job['log']]})"
        jobs.append(Job(job["rule"], job["message"], job["output"], job["log"] and root / job["log"], state, ended))
    return Status(run["targets"], run["scale"], run["started"], at_work, jobs, run.get("report"))


def is_at_work(snakemake: str) -> bool:
    """Whether the Snakemake of this identity still runs; where it ran on another machine nobody knows, so yes."""
    host, _, rest = snakemake.partition(":")
    if host != socket.gethostname():
        return True
    process = int(rest.split(":")[0])
    return Path(f"/proc/{process}").exists() and process_identity(process) == snakemake


def states_in(snakemake_log: Sequence[str]) -> dict[int, str]:
    """What the log says last of each job it names; a retry is running again."""
    states: dict[int, str] = {}
    paragraph = None
    for line in snakemake_log:
        if found := STARTED.match(line):
            states[int(found[1])] = RUNNING
        elif found := FINISHED.match(line):
            states[int(found[1])] = DONE
        elif paragraph and (found := PARAGRAPHS_JOB.match(line)):
            states[int(found[1])], paragraph = paragraph, None
        else:
            paragraph = next((state for state, begins in PARAGRAPHS.items() if begins.match(line)), paragraph)
    return states


def signals_in(snakemake_log: Sequence[str]) -> dict[str, str]:
    """Log of a stage -> name of the signal that ended it, the last time that it ended by one."""
    signals: dict[str, str] = {}
    known = {each.value: each.name for each in signal.Signals}
    for line in snakemake_log:
        if found := ENDED.search(line):
            log, name, status = found.groups()
            if name := name or known.get(int(status) - SIGNALLED, ""):
                signals[log] = name
            else:
                signals.pop(log, None)
    return signals


def describe(results: Path) -> Iterator[str]:
    """How the runs in a folder of results stand, as lines; stages that have outlived their Snakemake at the end.

    Raises:
        InputError: there is no run.
    """
    runs = read(results)
    for run in runs:
        yield from describe_run(run)
    if not any(run.at_work for run in runs):
        yield from (f"still at work, without its snakemake: {holder}" for holder in held_locks(results))


def describe_run(run: Status) -> Iterator[str]:
    """A table of rules, then what runs with its progress, and what failed with its log's end."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started))
    title = f"{run.targets}, scale" if run.targets else "scale"
    yield f"{title} {run.scale}, started {began}, {'at work' if run.at_work else 'ended'}"
    states = (DONE, RUNNING, LEFT, FAILED)
    counts = {rule: Counter(job.state for job in run.jobs if job.rule == rule) for rule in rules(run)}
    width = max(map(len, counts), default=0)
    yield f"{'':{width}}" + "".join(f"{state:>9}" for state in states)
    for rule, count in counts.items():
        yield f"{rule:{width}}" + "".join(f"{count[state] or '':>9}" for state in states)
    yield f"{'':{width}}" + "".join(f"{len(run.having(state)):>9}" for state in states)
    for job in run.having(RUNNING):
        yield f"running: {job.message}" + "".join(f"\n    {line}" for line in last_lines(job.log, 1))
    for job in run.having(FAILED):
        yield f"{job.ended or FAILED}: {job.message}" + (f" ({job.log})" if job.log else "")
        nothing = "it has written nothing into its log" if job.log else "it has no log; see Snakemake's"
        lines = last_lines(job.log, LINES_OF_A_FAILURE) or [nothing]
        yield from (f"    {line}" for line in lines)


def rules(run: Status) -> list[str]:
    return list(dict.fromkeys(job.rule for job in run.jobs))


def last_lines(path: Path | None, count: int) -> list[str]:
    """The last lines of a log, cut to a screen's width; none where there is no log yet."""
    if path is None or not path.is_file():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = deque((line.rstrip() for line in file if line.strip()), maxlen=count)
    return [line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 1] + "…" for line in lines]
