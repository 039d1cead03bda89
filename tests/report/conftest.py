"""A report's inputs in a folder."""

import csv
import json

import pytest
from result_rows import (
    DATA,
    MODELS,
    breakdown_rows,
    comparison_rows,
    engine_rows,
    layer_rows,
    perplexity_rows,
    simulated_rows,
    superglue_rows,
    ttft_rows,
    write_csv,
)

from krakenlm.report.build import build


class Inputs:
    """The report's inputs in a folder; `page()` builds it and returns its text."""

    def __init__(self, folder):
        self.folder = folder
        self.metrics = []
        self.write()

    def write(self, models=MODELS):
        write_csv(self.folder / "perplexity.csv", perplexity_rows(models))
        write_csv(self.folder / "superglue.csv", superglue_rows(models))
        write_csv(self.folder / "comparisons.csv", comparison_rows())
        write_csv(self.folder / "ttft.csv", ttft_rows())
        write_csv(self.folder / "simulated.csv", simulated_rows())
        write_csv(self.folder / "layers.csv", layer_rows())
        write_csv(self.folder / "breakdown.csv", breakdown_rows())
        write_csv(self.folder / "engines.csv", engine_rows(models))
        curve = [{"step": step, "loss": 6 - step / 10, "learning_rate": 0.1, "gradient_norm": 1.0} for step in range(9)]
        metrics = {"curve": curve, "validation": curve[::4], "timings": {"seconds": 61.0}}
        self.metrics = [
            self.json(f"corpus/models/{name}/seed0-abc/metrics.json", metrics) for name in models if "<" not in name
        ]
        self.json("corpus.json", {"data": DATA, "documents": {"train": 90, "val": 10}})
        self.json("manifest.json", {"data": DATA, "vocabulary": 500, "splits": {"train": {"tokens": 900}, "val": {}}})
        written = [
            {"model": name, "seed": "0", "prompt": "Once there was", "text": "a <b>kraken</b>\n\nwhich\x01 5% & more"}
            for name in models
        ]
        sampling = {"temperature": 0.8, "top_p": 0.95, "seed": 0}
        self.json("samples.json", {"data": DATA, "sampling": sampling, "samples": written})
        record = {
            "scale": "tiny",
            "date": "2024-02-29",
            "hardware": "CPU, 2 cores",
            "seconds": 61,
            "config": {"seeds": [0]},
        }
        self.json("run.json", {**record, "command": "snakemake --config scale=tiny", "versions": {"torch": "2.0.1"}})

    def json(self, name, value):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def page(self, name="report.html", **options):
        names = ("perplexity", "superglue", "comparisons", "ttft", "engines", "simulated", "layers", "breakdown")
        tables = {f"{table}_csv": self.folder / f"{table}.csv" for table in names}
        others = {f"{key}_json": self.folder / f"{key}.json" for key in ("corpus", "manifest", "samples", "run")}
        build(**tables, **others, metrics=self.metrics, out_html=self.folder / name, **options)
        return (self.folder / name).read_text()

    def replace(self, table, rows):
        write_csv(self.folder / f"{table}.csv", rows)

    def rows(self, table):
        with open(self.folder / f"{table}.csv", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)
