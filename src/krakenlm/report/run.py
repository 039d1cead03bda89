"""What the page says of the run itself: what it is made from, what it lacks, what it took, and how to make it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from krakenlm.files import read_json
from krakenlm.report import perplexity
from krakenlm.report.elements import Column, Table, table
from krakenlm.report.numbers import count, digits, distinct, number, plural

RESULTS = {
    "perplexity": "perplexity of every model and of n-grams",
    "superglue": "SuperGLUE of every model",
    "comparisons": "every two models compared",
    "engines": "engines against their whole models, and their time to first token",
    "ttft": "time to first token; trains nothing",
    "ttft_simulated": "time to first token, simulated; trains nothing",
}


def absent(run: Mapping, expected: Mapping[str, Sequence | Mapping], metrics: Sequence[Path]) -> list[str]:
    """What a whole run has and this one lacks, each in a few words; of what is `expected` that which is empty."""
    config = run.get("config") or {}
    trained = {(path.parent.parent.name, path.parent.name.split("-")[0]) for path in map(Path, metrics)}
    wanted = [
        (name, f"seed{seed}")
        for name, model in (config.get("models") or {}).items()
        if model is not None and not model.get("from")
        for seed in config.get("seeds") or []
    ]
    missing = [f"the {training(Path(name, seed))}" for name, seed in wanted if (name, seed) not in trained]
    return missing + [name for name, part in expected.items() if not part]


def labels_of(*descriptions: Mapping) -> list[str]:
    return [description["data"] for description in descriptions if description.get("data")]


def about(
    run: Mapping, corpus: Mapping, manifest: Mapping, labels: Sequence[str], rows: Mapping[str, Sequence]
) -> list[tuple[str, str]]:
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
        ("Models", trained(rows)),
        ("Text", "; ".join(sizes)),
        ("Vocabulary", count(manifest["vocabulary"]) + " tokens" if manifest.get("vocabulary") else None),
        ("Training", duration(run["seconds"]) + " in all" if run.get("seconds") else None),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted((run.get("versions") or {}).items()))),
    ]
    return [(name, str(text)) for name, text in facts if text]


def trained(rows: Mapping[str, Sequence]) -> str:
    """`5 models, 0.8 to 0.9 million parameters, 0.7 million tokens each, 3 seeds`; nothing without models."""
    networks = [row for row in rows["perplexity"] if not perplexity.is_ngram(row)]
    if not networks:
        return ""
    parts = [plural(len(distinct(networks, "model")), "model")]
    for key, unit in (("parameters", "parameters"), ("tokens_seen", "tokens each")):
        millions = sorted(
            {digits(number(text) / 1e6, 2) for text in distinct(networks, key) if number(text)}, key=float
        )
        if millions:
            parts.append(f"{' to '.join(dict.fromkeys((millions[0], millions[-1])))} million {unit}")
    return ", ".join([*parts, plural(len(distinct(networks, "seed")), "seed")])


def duration(seconds: float) -> str:
    """`3 min 20 s`, `2 h 5 min`, `12 s`."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{count(hours)} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def trainings(metrics: Sequence[Path]) -> Table:
    """What each training took, on which machine."""
    columns = [
        Column("model", "model"),
        Column("seed", "seed", count),
        Column("time", "time"),
        Column("seconds", "seconds", digits),
        Column("tokens_seen", "tokens", count),
        Column("tokens_per_second", "tokens/s", digits),
        Column("steps", "steps", count),
        Column("hardware", "machine"),
    ]
    rows = []
    for path in metrics:
        found = read_json(path)
        timings = found.get("timings") or {}
        values = {key: found.get(key) for key in ("seed", "tokens_seen", "steps", "hardware")}
        values |= {key: timings.get(key) for key in ("seconds", "tokens_per_second")}
        values |= {"model": Path(path).resolve().parent.parent.name}
        values |= {"time": duration(timings["seconds"]) if timings.get("seconds") else None}
        rows.append({key: "" if value is None else str(value) for key, value in values.items()})
    return table("trainings-table", "What each training took", columns, rows)


def training(folder: Path) -> str:
    """`training of standard, seed 0`, of models/standard/seed0-<hash>"""
    return f"training of {folder.parent.name}, {folder.name.split('-')[0].replace('seed', 'seed ')}"


def commands(run: Mapping, metrics: Sequence[Path], others: Mapping[str, Path | None]) -> Table | None:
    """A line that makes each result again; None where it is not known how this run was started.

    Args:
        others: files of this run by what they hold; one that is not there has no line.
    """
    command = run.get("command")
    if not command:
        return None
    program, _, options = command.partition(" ")
    made = [("results/report.html", "this page, its charts and tables")]
    made += [(f"results/{name}.csv", what) for name, what in RESULTS.items()]
    made += [(str(path), what) for what, path in others.items() if path and Path(path).exists()]
    made += [(str(path), training(Path(path).parent)) for path in metrics]
    rows = [{"result": "everything", "command": command}]
    rows += [{"result": what, "command": f"{program} {target} {options}".strip()} for target, what in made]
    columns = [Column("result", "result"), Column("command", "command")]
    return table("commands-table", "The command for each number", columns, rows)
