"""The page's section on SuperGLUE."""

from collections.abc import Sequence

from krakenlm.report import comparisons
from krakenlm.report.elements import Cell, Column, Figure, Group, Section, Table, verbatim
from krakenlm.report.figures import Palette, dots
from krakenlm.report.numbers import Row, digits, distinct, number, plural, spread

NEEDED = ("model", "task", "metric", "value", "stderr", "n", "chance", "data", "seed")
MULTIRC = (
    "MultiRC stands here twice. As lm-eval defines it, its choices are [yes, no] and the label is their index, while "
    "label 1 means that the answer is correct: a perfect model scores 0. lm-eval\u2019s figure is there for comparison "
    "with others\u2019; the corrected one has the labels the right way round and is what the model can do."
)


def section(
    rows: Sequence[Row], architectures: dict[str, str], palette: Palette, compared: Sequence[Row] = ()
) -> Section:
    """Scores by task and model.

    `architectures`: model -> architecture, as perplexity.csv says; `compared`: rows of comparisons.csv.
    """
    if not rows:
        return Section("superglue", "SuperGLUE", ["No SuperGLUE task was scored in this run."])
    tasks, compared = in_columns(rows), [row for row in compared if not comparisons.is_loss(row)]
    return Section(
        "superglue",
        "SuperGLUE",
        [text for text in (what(rows), multiplicity(rows), comparisons.sentence(compared)) if text],
        groups=[group(charted(tasks), architectures, palette)],
        tables=[
            by_model(rows, tasks, architectures),
            *comparisons.table("superglue-comparisons", "Scores, two models at a time, on the same examples", compared),
        ],
        notes=[MULTIRC] if any(is_corrected(row) for row in rows) else [],
        details=[verbatim("superglue-verbatim", "superglue.csv as it is", rows)],
    )


def is_corrected(row: Row) -> bool:
    return "corrected" in row["metric"] or row.get("reported") == "corrected"


def in_columns(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by task; a task with several metrics is several."""
    metrics: dict[str, set] = {}
    for row in rows:
        metrics.setdefault(row["task"], set()).add((row["metric"], is_corrected(row)))
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        name = row["task"]
        if len(metrics[name]) > 1:
            name += f", {row['metric']}"
        if is_corrected(row) and "corrected" not in name:
            name += " (corrected)"
        tasks.setdefault(name, []).append(row)
    return tasks


def charted(tasks: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Without metrics that no paper reports; the table has those too."""
    return {
        name: rows
        for name, rows in tasks.items()
        if is_corrected(rows[0]) or rows[0].get("reported", "").lower() != "false"
    }


def what(rows: Sequence[Row]) -> str:
    data = " and ".join(distinct(rows, "data")) or "unnamed data"
    models = len({(row["model"], row["seed"]) for row in rows})
    text = (
        f"Measured through lm-eval, no example in the prompt, on {data}, {plural(models, 'trained model')}, one "
        "evaluation each. Bars are one standard error to either side, over the examples of a task. The dashed line is "
        "chance: what a guess gets that does not look at the example."
    )
    if "synthetic" in data:
        text += (
            " The embedded text asks and answers in these same words, and on several formats a rule that looks at one "
            "word of the prompt is right most of the time (docs/embedded-text.md), so where models were trained on "
            "that text a score above chance shows that something was learnt, not that a story was understood."
        )
    return text


def multiplicity(rows: Sequence[Row]) -> str:
    tested = [value for row in rows if (value := number(row.get("p_value", ""))) is not None]
    if not tested:
        return "No test against chance was made."
    below = sum(value < 0.05 for value in tested)
    return (
        f"{below} of {len(tested)} scores have p < 0.05 (marked * in the table); up to about "
        f"{0.05 * len(tested):.0f} would if no model knew anything. p is the probability of at least as many right "
        "answers at chance."
    )


def group(tasks: dict[str, list[Row]], architectures: dict[str, str], palette: Palette) -> Group:
    """A chart for each task. All have the same scale, so lengths compare: around chance where scores stay near it, else
    from 0 to 1."""
    around = {name: limits_of(number(rows[0]["chance"]), reaches(tasks)) for name, rows in tasks.items()}
    whole = any(limits is not None and not 0 <= limits[0] < limits[1] <= 1 for limits in around.values())
    figures = []
    for name, rows in tasks.items():
        chance, limits = number(rows[0]["chance"]), (0.0, 1.0) if whole else around[name]
        spec = dots(
            [dot(row, architectures, palette) for row in rows if number(row["value"]) is not None],
            palette,
            rows[0]["metric"],
            limits=limits,
            mark=chance,
        )
        n = distinct(rows, "n")
        title = f"{name} \u00b7 n = {' and '.join(n)}" if n else name
        figures.append(Figure(title, f"{name}: score of each model, with chance; the table has the figures.", spec))
    return Group("Score and chance, task by task", figures, caption(tasks))


def caption(tasks: dict[str, list[Row]]) -> str:
    data = " and ".join(distinct([row for rows in tasks.values() for row in rows], "data")) or "unnamed data"
    return (
        f"Measured on {data}; bars: one standard error to either side; dashed: chance; all charts have the same scale."
    )


def limits_of(chance: float | None, reach: tuple[float, float]) -> tuple[float, float] | None:
    return None if chance is None else (chance - reach[0], chance + reach[1])


def reaches(tasks: dict[str, list[Row]]) -> tuple[float, float]:
    """How far scores with their bars go below and above chance, with a little room."""
    below, above = [0.02], [0.02]
    for row in (row for rows in tasks.values() for row in rows):
        value, chance, error = number(row["value"]), number(row["chance"]), number(row["stderr"]) or 0.0
        if value is not None and chance is not None:
            below.append(chance - value + error)
            above.append(value - chance + error)
    return max(below) * 1.05, max(above) * 1.05


def dot(row: Row, architectures: dict[str, str], palette: Palette) -> dict:
    value, error = float(row["value"]), number(row["stderr"])
    p_value = f", p = {digits(row['p_value'], 2)}" if row.get("p_value") else ""
    bar = "" if error is None else f" \u00b1 {error:.3f}"
    return {
        "label": row["model"],
        "place": palette.place(architectures.get(row["model"], "")),
        "value": value,
        "low": None if error is None else value - error,
        "high": None if error is None else value + error,
        "text": f"{row['model']}, seed {row['seed']}: {value:.3f}{bar}{p_value}",
    }


def by_model(rows: Sequence[Row], tasks: dict[str, list[Row]], architectures: dict[str, str]) -> Table:
    """A row a model, a column a task."""
    columns = [Column("model", "model"), Column("seed", "seed", str)]
    for name, part in tasks.items():
        chance = number(part[0]["chance"])
        columns.append(Column(name, name, str, "" if chance is None else f"chance {chance:.3f}"))
    cells = []
    for model, seed in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        line = [Cell(model, model, architectures.get(model, "")), Cell(seed, seed)]
        for part in tasks.values():
            row = next((row for row in part if (row["model"], row["seed"]) == (model, seed)), None)
            line.append(score(row) if row else Cell(""))
        cells.append(line)
    for model in distinct(rows, "model"):
        seeds = {row["seed"] for row in rows if row["model"] == model}
        if len(seeds) > 1:
            means = [mean_score([row for row in part if row["model"] == model]) for part in tasks.values()]
            cells.append([Cell(model, model, architectures.get(model, "")), Cell(f"mean of {len(seeds)}"), *means])
    data = " and ".join(distinct(rows, "data")) or "unnamed data"
    return Table("superglue-table", f"Score \u00b1 standard error, p against chance; {data}", columns, cells)


def mean_score(rows: Sequence[Row]) -> Cell:
    """Mean over seeds; in the note the standard deviation between them."""
    values = [value for row in rows if (value := number(row["value"])) is not None]
    if not values:
        return Cell("")
    mean, deviation = spread(values)
    return Cell(f"{mean:.3f}", str(mean), note="" if deviation is None else f"s.d. over seeds {deviation:.3f}")


def score(row: Row) -> Cell:
    value, error, p_value = number(row["value"]), number(row["stderr"]), number(row.get("p_value", ""))
    if value is None:
        return Cell(row["value"], row["value"])
    notes = [] if error is None else [f"\u00b1 {error:.3f}"]
    if p_value is not None:
        shown = comparisons.probability(row["p_value"])
        shown = f"p {shown if shown.startswith('<') else '= ' + shown}{'*' if p_value < 0.05 else ''}"
        notes.append(shown.replace(" ", "\u00a0"))
    return Cell(f"{value:.3f}", row["value"], note="\n".join(notes))
