"""The page of a run that has not come to its end."""

import shutil

import pytest

from krakenlm import status
from krakenlm.errors import InputError
from krakenlm.report import so_far

TABLES = {"simulated": "simulated.csv", "layers": "layers.csv", "breakdown": "breakdown.csv"}
TABLES |= {name: f"{name}.csv" for name in ("perplexity", "superglue", "comparisons", "ttft", "engines")}
TABLES |= {name: f"{name}.json" for name in ("corpus", "manifest", "samples")}


@pytest.fixture
def results(tmp_path):
    """A folder of results, of a run that has left what it was to do."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def leave(results, inputs, failing, **report):
    """The record of a run: `failing` has failed, what is made of the perplexities was not begun, all else is done."""
    for file in TABLES.values():
        shutil.copy(inputs.folder / file, results)
    files = {name: {f"results/{file}": f"results/{file}"} for name, file in TABLES.items()}
    files["layers"] = {"results/layers.csv": "results/simulated.csv"}  # the second output of a job
    files["metrics"] = {}
    left = {f"results/{failing}.csv": 1, "results/comparisons.csv": 2}
    done = [output for each in files.values() for output in each.values() if output not in left]
    jobs = [
        {"id": number, "rule": "some", "message": f"Making {output}", "output": output, "log": f"{number}.log"}
        for output, number in left.items()
    ]
    log = results.parent / "snakemake.log"
    log.write_text("Job 1: Making\nError in rule some:\n    jobid: 1\n")
    config = {"scale": "tiny", "models": {}, "seeds": [0]}
    made_from = {"inputs": files | report, "config": config, "run": "tiny/report-abc.json"}
    finished = [{"rule": "some", "output": output} for output in dict.fromkeys(done)]
    status.record(results, "tiny", "snakemake.log", jobs, finished, "", made_from)


def page(results):
    so_far.write(results, results / "page.html")
    return " ".join((results / "page.html").read_text().split())


def test_it_has_what_is_done_and_names_what_failed_and_what_is_missing(results, inputs):
    leave(results, inputs, "superglue")
    text = page(results)
    assert "<li>Making results/superglue.csv: failed (1.log)</li>" in text
    assert "These parts are missing or failed: superglue.csv, comparisons.csv. Run" in text
    assert "<code>snakemake --configfile" in text
    assert 'id="perplexity-table"' in text
    assert 'id="simulation-data"' in text


def test_a_table_that_an_earlier_run_left_is_not_of_this_one(results, inputs):
    leave(results, inputs, "superglue")
    assert (results / "superglue.csv").exists()
    assert "No SuperGLUE task was scored in this run." in page(results)


def test_a_breakdown_is_missing_only_where_the_engine_has_one(results, inputs):
    leave(results, inputs, "breakdown")
    assert "ttft_breakdown.csv" in page(results).partition("missing or failed:")[2].partition("Run")[0]
    leave(results, inputs, "superglue", breakdown={})
    assert "ttft_breakdown.csv" not in page(results)


def test_a_finished_report_says_nothing_of_an_end(inputs):
    assert "has not come to its end" not in inputs.page()
    assert "nothing has failed" in inputs.page(failed=[])


def test_without_a_run_of_the_report_one_line_says_so(results):
    jobs = [{"id": 1, "rule": "some", "message": "", "output": "results/ttft.csv", "log": None}]
    status.record(results, "tiny", "snakemake.log", jobs, [], "results/ttft.csv")
    with pytest.raises(InputError, match="start one with `snakemake`"):
        page(results)
