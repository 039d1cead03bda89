"""The page of a run that has not come to its end: what it has made so far, and what failed."""

from pathlib import Path

from krakenlm import status
from krakenlm.errors import InputError
from krakenlm.report.build import build
from krakenlm.report.environment import record

NOT_MADE = ".not-made"  # a file that is not there
TABLES = ("perplexity", "superglue", "comparisons", "ttft", "engines", "simulated", "layers")
DESCRIPTIONS = ("corpus", "manifest", "samples")


def write(results: Path, out_html: Path) -> None:
    """Write the page of the newest run that makes the report.

    A file counts only where its job is done in that run: what an earlier one has left there is not of this one.

    Args:
        results: folder of results, with what the run's Snakemake has left there (krakenlm.status).
        out_html: the page.

    Raises:
        InputError: no run has left what the report is made from, or a file of it is damaged.
    """
    run = newest(results)
    done = {job.output for job in run.having(status.DONE)}
    found = {
        name: [results / below_results(path) for path, output in files.items() if output in done]
        for name, files in run.report["inputs"].items()
    }
    one = {name: next(iter(files), results / NOT_MADE) for name, files in found.items()}
    run_json = results / run.report["run"]
    record(run_json, run.report["config"], found["metrics"])
    build(
        **{f"{name}_csv": one[name] for name in TABLES},
        breakdown_csv=one["breakdown"] if run.report["inputs"]["breakdown"] else None,
        **{f"{name}_json": one[name] for name in DESCRIPTIONS},
        metrics=found["metrics"],
        run_json=run_json,
        out_html=out_html,
        failed=[describe(job, results) for job in run.having(status.FAILED)],
    )


def below_results(path: str) -> Path:
    """
    Raises:
        InputError: the run kept its files elsewhere.
    """
    if not Path(path).is_relative_to("results"):
        raise InputError(f"report-so-far: expected files below results/, found {path}, which is in a storage")
    return Path(path).relative_to("results")


def describe(job: status.Job, results: Path) -> str:
    """`Training of standard: failed (results/tiny/logs/train.log)`"""
    log = f" ({job.log.relative_to(results.resolve().parent)})" if job.log else ""
    return f"{job.message}: {job.ended or job.state}{log}"


def newest(results: Path) -> status.Status:
    runs = [run for run in status.read(results) if run.report]
    if not runs:
        raise InputError(
            f"{results}: expected what a run of the whole reproduction leaves there, found none; "
            "start one with `snakemake`"
        )
    return runs[-1]
