"""The page's section on training and perplexity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from krakenlm.files import read_json
from krakenlm.report import comparisons
from krakenlm.report.elements import Column, Figure, Group, Sample, Section, Table, table, verbatim
from krakenlm.report.figures import DASHES, Palette, curves, dots, dots_by_size, thinned
from krakenlm.report.numbers import Row, count, digits, distinct, number, plural, spread

NEEDED = (
    "model", "architecture", "degree", "parameters", "tokens_seen", "data", "protocol", "loss", "perplexity",
    "bits_per_byte", "seed", "run",
)  # fmt: skip
AUTHORS = (
    "Protocol authors: the exponential of the mean loss over random validation windows under bfloat16 autocast, as the "
    "paper\u2019s authors computed theirs; the windows are the same for every model of equal block size."
)
MOST_DOTS = 250  # beyond that they hide the lines


class Trained:
    """One trained model: its metrics.json and what perplexity.csv calls it."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        folder = Path(path).resolve().parent
        self.metrics = read_json(path)
        row = next((row for row in rows if row["run"] and f"{folder.as_posix()}/".endswith(f"/{row['run']}/")), None)
        row = row or next((row for row in rows if row["model"] == folder.parent.name), None)
        # models/<name>/seed<k>-<hash>/metrics.json
        self.name = row["model"] if row else folder.parent.name
        self.architecture = row["architecture"] if row else ""
        self.seed = folder.name.removeprefix("seed").split("-")[0]

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}"


def section(rows: Sequence[Row], metrics: Sequence[Path], palette: Palette, compared: Sequence[Row] = ()) -> Section:
    """Training curves, validation, and the validation set by every protocol. `compared`: rows of comparisons.csv."""
    trained = [Trained(path, rows) for path in metrics]
    groups = [*training_groups(trained, rows, palette), *final_groups(rows, palette), *size_groups(rows, palette)]
    lead = [] if trained else ["No training curves were given."]
    if not rows:
        lead.append("No perplexity was measured in this run.")
        return Section("perplexity", "Perplexity", lead, groups=groups)
    compared = [row for row in compared if comparisons.is_loss(row)]
    lead += [what(rows), floor_sentence(rows), ngram_sentence(rows), comparisons.sentence(compared)]
    lead = [text for text in lead if text]
    return Section(
        "perplexity",
        "Perplexity",
        lead,
        groups=groups,
        tables=[
            scores(rows),
            *over_seeds(rows),
            *comparisons.table("perplexity-comparisons", "Loss, two models at a time, nats a token", compared),
        ],
        notes=[AUTHORS] if any(row["protocol"] == "authors" for row in rows) else [],
        details=[verbatim("perplexity-verbatim", "perplexity.csv as it is", rows)],
    )


def is_ngram(row: Row) -> bool:
    return row["architecture"] in ("", "n-gram")


def what(rows: Sequence[Row]) -> str:
    networks = [row for row in rows if not is_ngram(row)]
    data, protocol = (" and ".join(distinct(networks, key)) or "unnamed" for key in ("data", "protocol"))
    seeds, models = len(distinct(networks, "seed")), len({(row["model"], row["seed"]) for row in networks})
    text = f"Measured on {data}; protocol: {protocol}. {plural(models, 'trained model')}, {plural(seeds, 'seed')}"
    if seeds < 2:
        return f"{text}: with one run of each there is no spread to show, and small differences mean nothing."
    return f"{text}."


def floor_sentence(rows: Sequence[Row]) -> str:
    floors = distinct(rows, "floor_perplexity")
    if not floors:
        return "The perplexity that this text\u2019s own source would reach is not known, so no floor is drawn."
    return (
        f"The dashed line is the floor: perplexity {' and '.join(map(digits, floors))}, what the program that wrote "
        "the text would itself reach. No model can be expected below it."
    )


def ngram_sentence(rows: Sequence[Row]) -> str:
    if any(is_ngram(row) for row in rows):
        return "The n-grams saw the same training tokens and are scored on the same validation tokens."
    return "No n-grams were scored in this run."


def training_groups(trained: Sequence[Trained], rows: Sequence[Row], palette: Palette) -> list[Group]:
    """Training and validation loss over the steps, a line for each run."""
    patterns = dashes(trained)
    figures, readings = [], 1
    for title, key in (("Training loss", "curve"), ("Validation loss", "validation")):
        values = []
        for model in trained:
            means, readings_each = thinned(model.metrics.get(key) or [])
            readings = max(readings, readings_each) if key == "curve" else readings
            values += [curve_point(model, mean, palette, patterns[model.name]) for mean in means]
        if values:
            points = key == "validation" and len(values) <= MOST_DOTS
            spec = curves(values, palette, "loss, nats a token (logarithmic)", levels(rows, key), points)
            figures.append(Figure(title, f"{title} against the step, a line a run; the table has the end.", spec))
    samples = {
        model.name: Sample(model.name, model.architecture, dash=" ".join(map(str, DASHES[patterns[model.name]])))
        for model in trained
    }
    caption = training_caption(len(trained), readings, " and ".join(distinct(rows, "data")))
    return [Group("While training", figures, caption, list(samples.values()))] if figures else []


def training_caption(runs: int, readings: int, data: str) -> str:
    smoothing = f"each point is the mean of {readings} readings" if readings > 1 else "as read, not smoothed"
    return (
        f"Measured while training{data and f' on {data}'}, {plural(runs, 'run')} in all. Training loss: {smoothing}. "
        "Validation loss: on a sample of the validation windows."
    )


def dashes(trained: Sequence[Trained]) -> dict[str, int]:
    """The place of each model's dash: its number among the models of its architecture."""
    places: dict[str, int] = {}
    seen: dict[str, int] = {}
    for model in trained:
        if model.name not in places:
            places[model.name] = seen.get(model.architecture, 0) % len(DASHES)
            seen[model.architecture] = seen.get(model.architecture, 0) + 1
    return places


def curve_point(model: Trained, mean: Mapping, palette: Palette, variant: int) -> dict:
    step, loss = mean["step"], mean["loss"]
    return {
        "series": model.label,
        "place": palette.place(model.architecture),
        "variant": variant,
        "step": round(step, 1),
        "value": round(loss, 5),
        "text": f"{model.label}, step {step:,.0f}: {loss:.4f}",
    }


def levels(rows: Sequence[Row], key: str) -> list[dict]:
    """Lines across a chart of losses: the floor, and beside the validation loss the n-grams."""
    floors = [
        {"value": value, "name": "floor", "lowest": True}
        for text in distinct(rows, "floor_loss")
        if (value := number(text))
    ]
    ngrams = [
        {"value": value, "name": row["model"], "lowest": False}
        for row in rows
        if key == "validation" and is_ngram(row) and (value := number(row["loss"])) is not None
    ]
    return floors + ngrams


def final_groups(rows: Sequence[Row], palette: Palette) -> list[Group]:
    """The networks after training, a chart for each protocol; beside n-grams they would all look the same."""
    figures, floored = [], False
    scored = [row for row in rows if not is_ngram(row) and number(row["perplexity"]) is not None]
    for protocol in dict.fromkeys(row["protocol"] for row in scored):
        part = sorted((row for row in scored if row["protocol"] == protocol), key=lambda row: float(row["perplexity"]))
        floors = [value for text in distinct(part, "floor_perplexity") if (value := number(text)) is not None]
        mark = floors[0] if len(floors) == 1 else None
        floored = floored or mark is not None
        spec = dots([dot(row, palette) for row in part], palette, "perplexity", mark=mark)
        title = f"Protocol: {protocol or 'unnamed'}"
        figures.append(Figure(title, f"{title}: perplexity of each model; the table below has the figures.", spec))
    caption = f"Measured on {' and '.join(distinct(scored, 'data'))}; one dot a run."
    if any(map(comparisons.interval, scored)):
        caption += " Bars: the bootstrap\u2019s 95% interval over documents."
    caption += " Dashed: the floor." if floored else ""
    return [Group("Perplexity after training", figures, caption)] if figures else []


def size_groups(rows: Sequence[Row], palette: Palette) -> list[Group]:
    """Perplexity against parameters, a chart for each protocol: which architecture makes more of as many."""
    figures = []
    scored = [row for row in rows if not is_ngram(row) and number(row["perplexity"]) and number(row["parameters"])]
    for protocol in dict.fromkeys(row["protocol"] for row in scored):
        part, named = [row for row in scored if row["protocol"] == protocol], set()
        values = []
        for row in part:
            label = "" if row["model"] in named else row["model"]
            named.add(row["model"])
            values.append(dot(row, palette) | {"label": label, "parameters": float(row["parameters"])})
        title = f"Protocol: {protocol or 'unnamed'}"
        description = f"{title}: perplexity of each model against its parameters; the table below has the figures."
        figures.append(Figure(title, description, dots_by_size(values, palette, "perplexity")))
    caption = f"Measured on {' and '.join(distinct(scored, 'data'))}; one dot a run."
    return [Group("Perplexity against parameters", figures, caption)] if figures else []


def dot(row: Row, palette: Palette) -> dict:
    seed, bar = f", seed {row['seed']}" if row["seed"] else "", comparisons.interval(row)
    return {
        "label": row["model"],
        "place": palette.place(row["architecture"]),
        "value": float(row["perplexity"]),
        "low": number(row.get("ci_low", "")),
        "high": number(row.get("ci_high", "")),
        "text": f"{row['model']}{seed}: {digits(row['perplexity'])}{bar and f' ({bar})'}",
    }


def scores(rows: Sequence[Row]) -> Table:
    columns = [
        Column("model", "model"),
        Column("protocol", "protocol"),
        Column("perplexity", "perplexity", digits),
        Column("interval", "95% interval", None, "bootstrap over documents; of this training alone", result=True),
        Column("loss", "loss", digits, "nats a token"),
        Column("bits_per_byte", "bits a byte", digits),
        Column("floor_perplexity", "floor", digits, "perplexity of the program that wrote the text"),
        Column("parameters", "parameters", count, "of n-grams: how many are stored"),
        Column("tokens_seen", "tokens seen", count),
        Column("seed", "seed", count),
        Column("tokens", "tokens scored", count),
        Column("data", "data"),
    ]
    return table(
        "perplexity-table", "Perplexity", columns, [{**row, "interval": comparisons.interval(row)} for row in rows]
    )


def over_seeds(rows: Sequence[Row]) -> list[Table]:
    """Mean and spread of each model's perplexity by each protocol; no table where every model has one seed."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not is_ngram(row) and number(row["perplexity"]) is not None:
            groups.setdefault((row["model"], row["protocol"]), []).append(row)
    if all(len(group) < 2 for group in groups.values()):
        return []
    columns = [
        Column("model", "model"),
        Column("protocol", "protocol"),
        Column("seeds", "seeds", count),
        Column("mean", "perplexity, mean", digits),
        Column("deviation", "standard deviation", digits, "between seeds"),
        Column("lowest", "lowest", digits),
        Column("highest", "highest", digits),
    ]
    lines = []
    for (model, protocol), group in groups.items():
        values = [float(row["perplexity"]) for row in group]
        mean, deviation = spread(values)
        line = {"model": model, "architecture": group[0]["architecture"], "protocol": protocol, "seeds": len(group)}
        line |= {"mean": mean, "deviation": deviation, "lowest": min(values), "highest": max(values)}
        lines.append({key: "" if value is None else str(value) for key, value in line.items()})
    return [table("perplexity-seeds", "Perplexity over seeds", columns, lines)]
