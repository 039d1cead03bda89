"""One self-contained page from result files. It loads nothing: scripts, styles, data and charts are in it."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from krakenlm.files import read_json, write_text
from krakenlm.report import (
    breakdown,
    claims,
    comparisons,
    drawing,
    engines,
    paper,
    perplexity,
    price,
    samples,
    simulation,
    superglue,
    text,
    ttft,
)
from krakenlm.report import run as describe
from krakenlm.report.figures import SWATCHES, Palette
from krakenlm.report.numbers import distinct
from krakenlm.report.tables import read


def build(
    *,
    perplexity_csv: Path,
    superglue_csv: Path,
    comparisons_csv: Path,
    ttft_csv: Path,
    engines_csv: Path,
    simulated_csv: Path,
    layers_csv: Path,
    breakdown_csv: Path | None,
    metrics: list[Path],
    corpus_json: Path,
    manifest_json: Path,
    samples_json: Path,
    run_json: Path,
    out_html: Path,
    out_figures: Path | None = None,
    out_tables: Path | None = None,
    failed: Sequence[str] | None = None,
) -> None:
    """Write the report. Equal inputs give equal bytes: the only date in it is that of `run_json`.

    Args:
        perplexity_csv, superglue_csv, comparisons_csv, ttft_csv, engines_csv, simulated_csv: result tables; one that is
            missing or has no rows becomes a sentence that says so.
        layers_csv: what runs when in one layer of some simulated models.
        breakdown_csv: a result table as those; None where the engine has none.
        metrics: metrics.json of each trained model; a model without one is named as missing.
        corpus_json: what the corpus is; manifest_json: what its tokens are; samples_json: what models wrote; all may
            be missing.
        run_json: the record of the run (report.environment).
        out_html: the page.
        out_figures, out_tables: folders for its charts as SVG and PDF and its tables as LaTeX, replaced as a whole.
        failed: of a run that has not come to its end, each job that failed, in a line; None of a run that has.

    Raises:
        InputError: a file is damaged or lacks a column.
    """
    rows = {
        "perplexity": read(perplexity_csv, perplexity.NEEDED),
        "superglue": read(superglue_csv, superglue.NEEDED),
        "comparisons": read(comparisons_csv, comparisons.NEEDED),
        "ttft": read(ttft_csv, ttft.NEEDED),
        "engines": read(engines_csv, engines.NEEDED),
        "breakdown": read(breakdown_csv, breakdown.NEEDED) if breakdown_csv else [],
    }
    simulated, layers = read(simulated_csv, simulation.NEEDED), read(layers_csv, simulation.LAYERS_NEEDED)
    metrics = [path for path in metrics if Path(path).exists()]
    models = [row for row in rows["perplexity"] if not perplexity.is_ngram(row)] + rows["engines"]
    palette = Palette(row["architecture"] for row in models + rows["ttft"] + simulated)
    architectures = {row["model"]: row["architecture"] for row in models}
    run = read_json(run_json)
    corpus, manifest, written = (
        read_json(path) if Path(path).exists() else {} for path in (corpus_json, manifest_json, samples_json)
    )
    sections = [
        ttft.section(rows["ttft"], palette),
        price.section(rows["ttft"]),
        breakdown.section(rows["breakdown"]),
        simulation.section(simulated, layers, palette),
        perplexity.section(rows["perplexity"], metrics, palette, rows["comparisons"]),
        superglue.section(rows["superglue"], architectures, palette, rows["comparisons"]),
        engines.section(rows["engines"], palette),
        samples.section(written, architectures),
        text.section(manifest),
    ]
    labels = list(
        dict.fromkeys(
            [*describe.labels_of(corpus, manifest), *(d for part in rows.values() for d in distinct(part, "data"))]
        )
    )
    expected = {f"{name}.csv": part for name, part in rows.items() if name != "breakdown"}
    expected |= {"ttft_breakdown.csv": rows["breakdown"]} if breakdown_csv else {}
    expected |= {"ttft_simulated.csv": simulated, "the simulation\u2019s layers.csv": layers}
    expected |= {"corpus.json": corpus, "the tokens\u2019 manifest.json": manifest}
    expected["samples of generated text"] = written
    others = {
        "where the time of a prefill goes; trains nothing": breakdown_csv,
        "what runs when in one layer, simulated; trains nothing": layers_csv,
        "what the corpus is": corpus_json,
        "tokens, with their counts, lengths and duplicates": manifest_json,
        "samples of generated text": samples_json,
    }
    parts = {
        "sections": sections,
        "place": palette.place,
        "architectures": [name for name in palette.architectures if name in palette.found],
        "run": run,
        "claims": claims.claims(rows["comparisons"], rows["ttft"], architectures),
        "facts": describe.about(run, corpus, manifest, labels, rows),
        "failed": failed,
        "absent": describe.absent(run, expected, metrics),
        "run_tables": [
            found for found in (describe.trainings(metrics), describe.commands(run, metrics, others)) if found
        ],
        "synthetic": synthetic(labels),
        "trained_on_synthetic": synthetic([*describe.labels_of(corpus, manifest), *distinct(models, "data")]),
    }
    write_text(out_html, render(parts))
    if out_figures:
        paper.write_figures(sections, palette, (Path(__file__).parent / "page.css").read_text(), out_figures)
    if out_tables:
        paper.write_tables(sections, out_tables)


def synthetic(labels: Sequence[str]) -> list[str]:
    """Those of the labels of data that say that a program wrote it."""
    return [label for label in labels if "synthetic" in label.lower()]


def render(parts: Mapping) -> str:
    """page.html with its style and scripts in it."""
    environment = Environment(
        loader=PackageLoader("krakenlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = environment.loader.get_source
    scripts = [source(environment, name)[0] for name in ("page.js", "simulation.js")]
    config = parts["run"].get("config")
    return environment.get_template("page.html").render(
        **parts,
        draw=drawing.for_page,
        swatches=SWATCHES,
        configuration=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        style=Markup("".join(source(environment, name)[0] for name in ("page.css", "simulation.css"))),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
    )


def policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others run, and nothing is fetched from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
