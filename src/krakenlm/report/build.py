"""One self-contained page from result files. It loads nothing: scripts, styles, data and charts are in it."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import altair
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from krakenlm.files import read_json, write_text
from krakenlm.report import breakdown, comparisons, engines, perplexity, simulation, superglue, text, ttft
from krakenlm.report.elements import Section
from krakenlm.report.figures import Palette
from krakenlm.report.numbers import count, distinct
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
    run_json: Path,
    out_html: Path,
) -> None:
    """Write the report. Equal inputs give equal bytes: the only date in it is that of `run_json`.

    Args:
        perplexity_csv, superglue_csv, comparisons_csv, ttft_csv, engines_csv, simulated_csv: result tables; one that is
            missing or has no rows becomes a sentence that says so.
        layers_csv: what runs when in one layer of some simulated models.
        breakdown_csv: likewise; None where the engine has none.
        metrics: metrics.json of each trained model.
        corpus_json: what the corpus is; manifest_json: what its tokens are; both may be missing.
        run_json: the record of the run (report.environment).
        out_html: the page.

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
    models = [row for row in rows["perplexity"] if not perplexity.is_ngram(row)] + rows["engines"]
    palette = Palette(row["architecture"] for row in models + rows["ttft"] + simulated)
    architectures = {row["model"]: row["architecture"] for row in models}
    run = read_json(run_json)
    corpus, manifest = (read_json(path) if Path(path).exists() else {} for path in (corpus_json, manifest_json))
    sections = [
        ttft.section(rows["ttft"], palette),
        ttft.price(rows["ttft"]),
        breakdown.section(rows["breakdown"]),
        simulation.section(simulated, layers, palette),
        perplexity.section(rows["perplexity"], metrics, palette, rows["comparisons"]),
        superglue.section(rows["superglue"], architectures, palette, rows["comparisons"]),
        engines.section(rows["engines"], palette),
        text.section(manifest),
    ]
    labels = list(
        dict.fromkeys([*labels_of(corpus, manifest), *(d for part in rows.values() for d in distinct(part, "data"))])
    )
    page = render(sections, palette, run, about(run, corpus, manifest, labels), labels)
    write_text(out_html, page)


def labels_of(*descriptions: Mapping) -> list[str]:
    return [description["data"] for description in descriptions if description.get("data")]


def about(run: Mapping, corpus: Mapping, manifest: Mapping, labels: Sequence[str]) -> list[tuple[str, str]]:
    """What this page is made from: (name, text)."""
    documents = corpus.get("documents") or {}
    splits = manifest.get("splits") or {}
    names = {"train": "training", "val": "validation"}
    sizes = [
        f"{names[split]} "
        + ", ".join(
            f"{count(value)} {unit}"
            for value, unit in (
                (documents.get(split), "documents"),
                ((splits.get(split) or {}).get("tokens"), "tokens"),
            )
            if value is not None
        )
        for split in names
        if split in documents or split in splits
    ]
    facts = [
        ("Scale", run.get("scale")),
        ("Date", run.get("date")),
        ("Machine", run.get("hardware")),
        ("Data", "; ".join(labels)),
        ("Text", "; ".join(sizes)),
        ("Vocabulary", count(manifest["vocabulary"]) + " tokens" if manifest.get("vocabulary") else None),
        ("Training", duration(run["seconds"]) + " in all" if run.get("seconds") else None),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted((run.get("versions") or {}).items()))),
    ]
    return [(name, str(text)) for name, text in facts if text]


def duration(seconds: float) -> str:
    """`3 min 20 s`, `2 h 5 min`, `12 s`."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{count(hours)} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def render(
    sections: Sequence[Section], palette: Palette, run: Mapping, facts: Sequence[tuple], labels: Sequence[str]
) -> str:
    environment = Environment(
        loader=PackageLoader("krakenlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = environment.loader.get_source
    scripts = [vega(), *(source(environment, name)[0] for name in ("page.js", "simulation.js"))]
    return environment.get_template("page.html").render(
        sections=sections,
        place=palette.place,
        facts=facts,
        run=run,
        configuration=json.dumps(run.get("config"), indent=2, ensure_ascii=False) if run.get("config") else "",
        synthetic=[label for label in labels if "synthetic" in label.lower()],
        style=Markup("".join(source(environment, name)[0] for name in ("page.css", "simulation.css"))),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
    )


def vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, kept out of the global names of others."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return "(() => {" + vl_convert.javascript_bundle(vl_version=version) + "})();"


def policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others run, and nothing is fetched from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
