"""The paper's three claims, each with this run's figure beside the paper's, its uncertainty and a plain word.

What the paper is known to say of perplexity and SuperGLUE has no figures: none stand here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krakenlm.report import comparisons, ttft
from krakenlm.report.numbers import Row, geometric_mean, number, plural, times

AGREES, DIFFERS, TOO_SMALL, NOT_MEASURED = "agrees", "differs", "too small to tell", "not measured"
TWO_SIDED_95 = 1.96  # standard errors to either side of a value in its 95% interval
ONE_TRAINING = "one training of each: how far trainings differ by chance is not known"
# Of a setting's rows that the word rests on: with more of them drifted it is not told.
MOST_DRIFTED = 0.1
# How far from 1 an interval of one run on a CPU has to lie: what else the machine does moves a run by some percent.
CPU_MARGIN = 1.05
OF_ONE_RUN = "the interval is over the cells of this one run; how far runs differ it does not say"
MARKS = {AGREES: "\u2713", DIFFERS: "\u2260", TOO_SMALL: "?", NOT_MEASURED: "\u2013"}


@dataclass(frozen=True)
class Claim:
    """One line: what the paper says, what this run found, and the word for it; `section` has the figures."""

    title: str
    theirs: str
    ours: str
    word: str
    why: str
    section: str

    @property
    def mark(self) -> str:
        return MARKS[self.word]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval, None where there is none, and the word that it gives by itself, with the reason
    where reasons differ."""

    name: str
    value: float
    low: float | None
    high: float | None
    word: str
    why: str = ""

    def shown(self, show) -> str:
        interval = "" if self.low is None else f" [{show(self.low)} to {show(self.high)}]".replace("\u00d7", "")
        return f"{self.name} {show(self.value)}{interval}"


def claims(compared: Sequence[Row], ttft_rows: Sequence[Row], architectures: Mapping[str, str]) -> list[Claim]:
    """The three claims.

    Args:
        compared: comparisons.csv; ttft_rows: ttft.csv.
        architectures: model -> architecture.
    """
    pairs = [oriented for row in compared if (oriented := kraken_over_standard(row, architectures))]
    return [perplexity(pairs), superglue(pairs), first_token(ttft_rows)]


def kraken_over_standard(row: Row, architectures: Mapping[str, str]) -> dict[str, str] | None:
    """A comparison as Kraken less standard, turned round where it stands the other way; None of all other pairs."""
    pair = [architectures.get(row[key], "") for key in ("model", "against")]
    if pair == ["kraken", "standard"]:
        return dict(row)
    if pair != ["standard", "kraken"]:
        return None
    turned = {"difference": row["difference"], "ci_low": row["ci_high"], "ci_high": row["ci_low"]}
    negative = {key: repr(-value) if (value := number(text)) is not None else "" for key, text in turned.items()}
    return row | negative | {"model": row["against"], "against": row["model"]}


def by_model(pairs: Sequence[Row]) -> dict[str, list[Row]]:
    models: dict[str, list[Row]] = {}
    for row in pairs:
        models.setdefault(row["model"], []).append(row)
    return models


def word_of(estimates: Sequence[Estimate]) -> str:
    """That of all of them: one that differs is enough to differ, and all have to agree to agree."""
    words = {estimate.word for estimate in estimates}
    return next((word for word in (DIFFERS, TOO_SMALL) if word in words), AGREES)


def within(low: float | None, high: float | None, margin: float) -> str:
    """The word for a difference that should be none: within the margin, beyond 0, or neither."""
    if low is None or high is None:
        return TOO_SMALL
    if -margin <= low and high <= margin:
        return AGREES
    return DIFFERS if low > 0 or high < 0 else TOO_SMALL


def judged(title: str, theirs: str, pairs: Sequence[Row], estimates: Sequence[Estimate], ours: str, section: str):
    """A claim about quality. One training of each says nothing about architectures, however many documents it saw."""
    if not estimates:
        why = "needs a trained Kraken and a trained standard, both scored"
        return Claim(title, theirs, "no Kraken was compared with standard in this run", NOT_MEASURED, why, section)
    if any((number(row["seeds"]) or 0) < 2 for row in pairs):
        return Claim(title, theirs, ours, TOO_SMALL, ONE_TRAINING, section)
    margin = number(pairs[0]["margin"])
    shown = f"within {100 * margin:.0f} points" if section == "superglue" else f"within {math.expm1(margin):.0%}"
    why = {
        AGREES: f"the whole interval is {shown}",
        DIFFERS: f"the interval excludes no difference, and is not {shown}",
        TOO_SMALL: f"the interval holds both no difference and more than is {shown}",
    }
    word = word_of(estimates)
    return Claim(title, theirs, ours, word, why[word], section)


def perplexity(pairs: Sequence[Row]) -> Claim:
    pairs = [row for row in pairs if comparisons.is_loss(row) and number(row["difference"]) is not None]
    estimates = []
    for model, rows in by_model(pairs).items():
        value, low, high, margin = (number(rows[0][key]) for key in ("difference", "ci_low", "ci_high", "margin"))
        ratios = [None if end is None else math.exp(end) for end in (low, high)]
        estimates.append(Estimate(model, math.exp(value), *ratios, within(low, high, margin)))
    ours = ";\n".join(estimate.shown(lambda x: f"{x:.3f}\u00d7") for estimate in estimates)
    theirs = "On OpenWebText similar to GPT-2\u2019s at equal parameters (figures not available to this project)"
    return judged("Perplexity", theirs, pairs, estimates, f"{ours} that of standard", "perplexity")


def superglue(pairs: Sequence[Row]) -> Claim:
    pairs = [row for row in pairs if not comparisons.is_loss(row) and number(row["difference"]) is not None]
    estimates = [mean_over_tasks(model, one_a_task(rows)) for model, rows in by_model(pairs).items()]
    tasks = plural(len({row["measure"].split(",")[0] for row in pairs}), "task")
    ours = ";\n".join(estimate.shown(lambda x: f"{100 * x:+.1f}".replace("-", "\u2212")) for estimate in estimates)
    theirs = "Zero-shot scores reported beside GPT-2\u2019s (figures not available to this project)"
    return judged(
        "SuperGLUE", theirs, pairs, estimates, f"{ours} points against standard, mean of {tasks}", "superglue"
    )


def one_a_task(rows: Sequence[Row]) -> list[Row]:
    """A row for each task: the corrected metric where there is one, else the first, which for ReCoRD is F1."""
    tasks: dict[str, Row] = {}
    for row in rows:
        task = row["measure"].split(",")[0]
        if task not in tasks or "corrected" in row["measure"]:
            tasks[task] = row
    return list(tasks.values())


def mean_over_tasks(model: str, rows: Sequence[Row]) -> Estimate:
    """The mean of the tasks' differences, its error the mean of theirs: tasks share the trainings, and so their luck.

    Where two models gave the same answers throughout there is no interval; one example answered otherwise is the
    error then.
    """
    values = [float(row["difference"]) for row in rows]
    errors = []
    for row in rows:
        low, high = number(row["ci_low"]), number(row["ci_high"])
        known = low is not None and high is not None
        errors.append((high - low) / 2 if known else TWO_SIDED_95 / (number(row["items"]) or 1))
    mean, error = sum(values) / len(values), sum(errors) / len(errors)
    word = within(mean - error, mean + error, number(rows[0]["margin"]))
    return Estimate(model, mean, mean - error, mean + error, word)


def first_token(rows: Sequence[Row]) -> Claim:
    """Kraken's speed-up over standard on every machine, engine, link and type that was measured.

    On another machine than the paper's its size is another: the word is whether it is a speed-up on each of them.
    """
    title, section = "Time to first token", "ttft"
    theirs = f"{times(float(ttft.PAPER_SPEEDUP))} as fast as standard in the mean, on 8 A100 40 GB with NVSwitch"
    krakens = [row for row in ttft.shared(rows) if row["architecture"] == "kraken" and row["source"] == "measured"]
    if not krakens:
        why = "needs Kraken and standard timed on two ranks or more"
        return Claim(title, theirs, "nothing was measured in this run", NOT_MEASURED, why, section)
    settings = ttft.split(krakens, ttft.SETTING)
    estimates = [mean_speedup(part, share_drifted(part, rows)) for part in settings]
    ours = "; ".join(
        f"{estimate.shown(times).strip()}, {plural(len(part), 'cell')}, {ttft.where(part)}"
        for estimate, part in zip(estimates, settings, strict=True)
    )
    word = word_of(estimates)
    return Claim(title, theirs, ours, word, reason(estimates, word), section)


def reason(estimates: Sequence[Estimate], word: str) -> str:
    """Why the settings' estimates have this word in all, and what an interval is of."""
    deciding = [estimate for estimate in estimates if estimate.word == word]
    reasons = list(dict.fromkeys(estimate.why for estimate in deciding))
    why = (
        reasons[0] if word != AGREES or len(reasons) == 1 else "faster, by how much depends on the machine and its link"
    )
    if len(deciding) < len(estimates):
        why += " in one of these settings at least"
    return why if all(estimate.low is None for estimate in estimates) else f"{why}; {OF_ONE_RUN}"


def share_drifted(krakens: Sequence[Row], rows: Sequence[Row]) -> float:
    """Of Kraken's rows and those of standard in the same cells, how many drifted while they were measured."""
    key = (*ttft.CELL, "context")
    cells = {tuple(row.get(name) for name in key) for row in krakens}
    standards = [
        row for row in rows if row["architecture"] == "standard" and tuple(row.get(name) for name in key) in cells
    ]
    compared = [*krakens, *standards]
    return sum(map(ttft.is_drifted, compared)) / len(compared)


def mean_speedup(rows: Sequence[Row], drifted: float) -> Estimate:
    """The geometric mean over the cells of one setting, with its word.

    Cells are measured one after the other, so their errors add up as squares. `drifted` is the share of rows that did.
    """
    mean = geometric_mean([float(row["speedup_vs_standard"]) for row in rows])
    ends = [[number(row.get(key, "")) for key in ("speedup_ci_low", "speedup_ci_high")] for row in rows]
    if any(low is None or high is None or not 0 < low <= high for low, high in ends):
        return Estimate("", mean, None, None, TOO_SMALL, "no interval was measured")
    error = math.hypot(*(math.log(high / low) / 2 for low, high in ends)) / len(ends)
    low, high = mean / math.exp(error), mean * math.exp(error)
    margin = CPU_MARGIN if rows[0]["link"].startswith("gloo") else 1.0  # gloo adds up on CPUs alone
    return Estimate("", mean, low, high, *judged_speedup(low, high, margin, drifted))


def judged_speedup(low: float, high: float, margin: float, drifted: float) -> tuple[str, str]:
    """(word, reason) of the 95% interval of a speed-up; `margin` is the least factor from 1 that is told from 1."""
    paper = float(ttft.PAPER_SPEEDUP)
    if low <= 1 <= high:
        return TOO_SMALL, "the interval holds both faster and slower"
    if drifted > MOST_DRIFTED:
        return TOO_SMALL, f"{drifted:.0%} of the rows compared drifted while they were measured"
    if 1 / margin <= high and low <= margin:
        return TOO_SMALL, f"the interval comes within {margin - 1:.0%} of no difference, which is noise on a CPU"
    if high < 1:
        return DIFFERS, "slower"
    if high < paper:
        return AGREES, "faster, by less than the paper\u2019s"
    return AGREES, "faster, by more than the paper\u2019s" if low > paper else "faster, by as much as the paper\u2019s"
