"""The eight SuperGLUE tasks, zero-shot, with lm-eval's own prompts and metrics."""

import contextlib
import functools
import hashlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval.tasks
import lm_eval.utils
import pandas
import scipy
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as run_tasks

from krakenlm.errors import InputError
from krakenlm.evaluation.lm import KrakenLM
from krakenlm.evaluation.ranks import on_ranks
from krakenlm.files import read_json, write_table, writing
from krakenlm.models.collectives import Collectives

COLUMNS = (
    "model",
    "task",
    "metric",
    "value",
    "stderr",
    "n",
    "chance",
    "data",
    "seed",
    "scale",
    "run",
    "p_value",
    "task_version",
    "reported",
)
# The hub's copy of SuperGLUE that lm-eval's tasks name, at the revision that made it parquet (2024); it has not
# changed since.
HUB, HUB_REVISION = "aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646"
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent / "super_glue"
SPLIT = "validation"
CORRECTED = "acc (corrected)"  # MultiRC's, see `evaluate`
# What several examples of a task have in common, so that they depend on one another.
SHARED = {"multirc": "paragraph", "record": "passage"}


@dataclass(frozen=True)
class Task:
    """One of the eight.

    lm_eval_name: what lm-eval calls it; labels: how many there are, None where the answer is one of the row's own
    entities; fields: key -> type of a row; metrics: of lm-eval, the one that the paper reports first.
    """

    lm_eval_name: str
    labels: int | None
    fields: Mapping[str, type]
    metrics: tuple[str, ...] = ("acc",)


SPANS = {"span1_index": int, "span1_text": str, "span2_index": int, "span2_text": str}
TASKS = {
    "boolq": Task("boolq", 2, {"question": str, "passage": str, "label": int}),
    "cb": Task("cb", 3, {"premise": str, "hypothesis": str, "label": int}, ("acc", "f1")),
    "copa": Task("copa", 2, dict.fromkeys(("premise", "choice1", "choice2", "question"), str) | {"label": int}),
    "multirc": Task("multirc", 2, {"paragraph": str, "question": str, "answer": str, "label": int}),
    "record": Task("record", None, {"passage": str, "query": str, "entities": list, "answers": list}, ("f1", "em")),
    "rte": Task("sglue_rte", 2, {"premise": str, "hypothesis": str, "label": int}),
    "wic": Task("wic", 2, {"sentence1": str, "sentence2": str, "start1": int, "end1": int, "label": int}),
    "wsc": Task("wsc", 2, {"text": str, **SPANS, "label": int}),
}


def evaluate(
    model: Path, tasks: Path | None, out: Path, name: str, seed: int, scale: str, run: str, threads: int, ranks: int = 1
) -> list[dict]:
    """Score a model on the eight tasks; write one row for each metric as CSV and, beside it, each example as parquet.

    lm-eval's MultiRC (0.4.13) has the choices [yes, no] and takes the label as index, while label 1 says that the
    answer is correct, so a perfect model scores 0. Its figure stands as `acc`, for comparison with others';
    `acc (corrected)` has the labels the right way round and is what the model can do.

    `chance` of an accuracy is the larger of a uniform guess among the labels and of the share of the most frequent
    label; of CB's F1 (mean over the labels) the larger of what either gets on many examples; of ReCoRD's the mean
    over a uniform guess among the entities. `p_value` of an accuracy (and ReCoRD's em) is the one-sided exact
    binomial probability of at least as many right answers at `chance`; for em, whose chance differs between
    examples, that is an upper bound (Hoeffding 1956). F1 has none. `reported` is true for the metric that the paper
    reports: accuracy, for ReCoRD F1. `stderr` is lm-eval's standard error, empty where it has none.

    Args:
        model: model folder (config.json, model.safetensors, tokenizer.json).
        tasks: folder of <task>.jsonl in the schema of aps/super_glue, and for the `data` column tasks.json with
            {"data": label}; None for the hub's validation sets, at `HUB_REVISION`.
        out: the CSV to write, with the columns of `COLUMNS`; beside it, with the suffix .parquet, the predictions
            (`predictions`).
        name, seed, scale, run: go into the rows.
        threads: threads that torch may use, of each rank; equal numbers give equal bits.
        ranks: processes, each with a GPU where there are as many, that share the requests; the bits are those of one.

    Raises:
        InputError: a file is missing, or a row of it is not as its task needs it.
    """
    arguments = {"model": str(model), "tasks": None if tasks is None else str(tasks), "out": str(out)}
    arguments["names"] = {"model": name, "seed": seed, "scale": scale, "run": run}
    return on_ranks("krakenlm.evaluation.superglue:evaluate_on_rank", evaluate_on_rank, arguments, ranks, threads)


@contextlib.contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Meanwhile a prompt's template is compiled once; lm-eval by itself compiles it anew for each example."""
    compile_template = lm_eval.utils.env.from_string
    lm_eval.utils.env.from_string = functools.lru_cache(maxsize=1024)(compile_template)
    try:
        yield
    finally:
        lm_eval.utils.env.from_string = compile_template


@templates_compiled_once()
def evaluate_on_rank(
    comm: Collectives, device: str, model: str, tasks: str | None, out: str, names: Mapping
) -> list[dict]:
    """`evaluate` on one of the ranks that share the requests; the first one writes, and returns the rows."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    common = {"data": data_label(tasks), **names}
    language_model = KrakenLM(model, device, comm=comm)
    loaded = load_tasks(None if tasks is None else Path(tasks))
    # No metric of the eight is bootstrapped; a positive number makes lm-eval give standard errors at all.
    results = run_tasks(language_model, loaded, bootstrap_iters=1, log_samples=True)
    if comm.rank:
        return []
    rows = [
        common | row
        for key, task in TASKS.items()
        for row in task_rows(key, task, loaded["tasks"][task.lm_eval_name], results)
    ]
    with writing(Path(out).with_suffix(".parquet")) as temporary:
        predictions(results["samples"]).assign(**common).to_parquet(temporary, index=False)
    return write_table(out, rows, COLUMNS)


def predictions(samples: Mapping) -> pandas.DataFrame:
    """One row per example and metric: task, example (its number), group, label (JSON: the right answer's number, of
    ReCoRD the right entities), metric, value, predicted (the chosen answer's number) and nats (the log-probability of
    each answer).

    Examples of a group depend on one another: those about one paragraph or passage; elsewhere each is its own.
    F1 of CB is a score of all examples together and has no row; ReCoRD's is each example's own.
    """
    return pandas.DataFrame(
        {
            "task": key,
            "example": sample["doc_id"],
            "group": group(key, sample),
            "label": json.dumps(sample["doc"]["answers" if task.labels is None else "label"], ensure_ascii=False),
            "metric": metric,
            "value": value,
            "predicted": max(range(len(nats)), key=nats.__getitem__),
            "nats": nats,
        }
        for key, task in TASKS.items()
        for sample in samples[task.lm_eval_name]
        for nats in [[float(answer[0]) for answer in sample["filtered_resps"]]]
        for metric, value in values(key, task, sample)
    )


def group(key: str, sample: Mapping) -> str:
    """A hash of what the example shares with others, its own number where that is nothing."""
    if key not in SHARED:
        return str(sample["doc_id"])
    return hashlib.sha256(sample["doc"][SHARED[key]].encode()).hexdigest()[:16]


def values(key: str, task: Task, sample: Mapping) -> Iterator[tuple[str, float]]:
    """(metric, value) of one example; MultiRC's as lm-eval has it and corrected."""
    for metric in task.metrics:
        if isinstance(sample[metric], int | float):
            yield metric, float(sample[metric])
    if key == "multirc":
        yield CORRECTED, 1 - float(sample["acc"])


def load_tasks(folder: Path | None) -> dict:
    """lm-eval's eight tasks as its `evaluate` takes them; with a folder, over that folder's rows.

    The rows are handed over in memory, so no cache of another run's is read and none is left behind.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for key in TASKS:
            # No examples stand in the prompt, so the training split is not needed (nor, locally, there).
            settings = [f"include: {json.dumps(str(LM_EVAL_TASKS / key / 'default.yaml'))}", "training_split: null"]
            if folder is None:
                settings.append(f"dataset_kwargs: {json.dumps({'revision': HUB_REVISION})}")
            else:
                source = {"path": str(Path(folder) / f"{key}.jsonl"), "key": key}
                settings.append("custom_dataset: !function krakenlm.evaluation.superglue.local_rows")
                settings.append(f"dataset_kwargs: {json.dumps(source)}")
            Path(temporary, f"{key}.yaml").write_text("\n".join(settings), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_path=temporary, include_defaults=False)
        try:
            loaded = manager.load([task.lm_eval_name for task in TASKS.values()])
        except OSError as error:
            if folder is not None:  # of this machine's disk, not of the hub
                raise
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"evaluation.superglue: expected {HUB} from the hub, could not get it ({reason}); check the network "
                "or give local tasks"
            ) from None
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return loaded


def local_rows(path: str, key: str, **_: object) -> dict[str, datasets.Dataset]:
    """The rows of a local task, as lm-eval wants a data set.

    Raises:
        InputError: the file is missing or empty, or a row is not as the task needs it; names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: expected examples of {key}, found no file; run the tasks stage") from None
    except OSError as error:  # a folder, a file of another user's
        raise InputError(f"{path}: expected a file to read, found none ({error.strerror}); correct it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found a damaged file ({error}); make it again") from None
    rows = [parse_row(line, f"{path} line {number}", key) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: expected examples of {key}, found an empty file; run the tasks stage")
    return {SPLIT: datasets.Dataset.from_list(rows)}


def parse_row(line: str, place: str, key: str) -> dict:
    """One example with the task's own fields, checked."""
    task = TASKS[key]
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, found {line[:60]!r}; correct it")
    for field, kind in task.fields.items():
        if type(row.get(field)) is not kind:
            raise InputError(
                f"{place}: expected {field} of type {kind.__name__} for {key}, found {row.get(field)!r}; correct it"
            )
    if problem := wrong(row, key, task):
        raise InputError(f"{place}: {problem}; correct it")
    if key == "wsc" and not has_pronoun_in_place(row):
        # lm-eval marks the pronoun by the number of words before it. Published files have a few that are not there.
        print(
            f"{place}: {row['span2_text']!r} is not word {row['span2_index']} of its text, which lm-eval marks in its "
            "place; scored as it is",
            file=sys.stderr,
        )
    return {field: row[field] for field in task.fields}


def wrong(row: Mapping, key: str, task: Task) -> str:
    """What is wrong with the values of a row, "" where nothing is."""
    if task.labels and not 0 <= row["label"] < task.labels:
        return f"expected label 0 to {task.labels - 1}, found {row['label']}"
    if key == "copa" and row["question"] not in ("cause", "effect"):
        return f"expected question cause or effect, found {row['question']!r}"
    if key == "copa" and not (row["choice1"].strip() and row["choice2"].strip()):
        return f"expected a text for choice1 and choice2, found {row['choice1']!r} and {row['choice2']!r}"
    if key == "record" and not all(isinstance(name, str) and name.strip() for name in row["entities"] + row["answers"]):
        return f"expected texts in entities {row['entities']} and answers {row['answers']}, found others or empty ones"
    if key == "record" and not set(row["answers"]) & set(row["entities"]):
        return f"expected answers out of entities {row['entities']}, found {row['answers']}"
    if key == "record" and "@placeholder" not in row["query"]:
        return f"expected @placeholder in query, found {row['query']!r}"
    if key == "wsc" and not (row["span2_text"] and 0 <= row["span2_index"] < len(row["text"].split())):
        return f"expected {row['span2_text']!r} as word {row['span2_index']} of text, found {row['text']!r}"
    if key == "wic" and not row["sentence1"][row["start1"] : row["end1"]].strip():
        return f"expected a word at start1 to end1, found none at {row['start1']} to {row['end1']}"
    return ""


def has_pronoun_in_place(row: Mapping) -> bool:
    """Whether WSC's word begins with its pronoun; neither case nor a point or comma at the pronoun's end matters."""
    words, place = row["text"].split(), row["span2_index"]
    pronoun = row["span2_text"].rstrip(".,").lower()
    return pronoun != "" and 0 <= place < len(words) and words[place].lower().startswith(pronoun)


def task_rows(key: str, task: Task, lm_eval_task: ConfigurableTask, results: Mapping) -> list[dict]:
    """The rows of one task, without the columns that all tasks share."""
    samples = results["samples"][task.lm_eval_name]
    summary = results["results"][task.lm_eval_name]
    version = results["versions"][task.lm_eval_name]
    rows = []
    for metric in task.metrics:
        stderr = summary.get(f"{metric}_stderr,none")
        rows.append(
            {
                "task": key,
                "metric": metric,
                "value": summary[f"{metric},none"],
                "stderr": stderr if isinstance(stderr, float) else None,
                "n": len(samples),
                "chance": chance(metric, task, lm_eval_task, samples),
                "task_version": version,
                "reported": metric == task.metrics[0],
            }
        )
        if metric != "f1":
            hits = round(sum(sample[metric] for sample in samples))
            rows[-1]["p_value"] = p_value(hits, len(samples), rows[-1]["chance"])
    return [*rows, corrected(rows[0])] if key == "multirc" else rows


def corrected(row: Mapping) -> dict:
    """MultiRC's accuracy with the labels the right way round: with two choices, what was wrong is right."""
    hits = round((1 - row["value"]) * row["n"])
    return {
        **row,
        "metric": CORRECTED,
        "value": 1 - row["value"],
        "p_value": p_value(hits, row["n"], row["chance"]),
        "reported": False,
    }


def p_value(hits: int, n: int, chance: float) -> float:
    """Probability of at least `hits` right answers out of `n` when each is right with probability `chance`."""
    return float(scipy.stats.binom.sf(hits - 1, n, chance))


def chance(metric: str, task: Task, lm_eval_task: ConfigurableTask, samples: Sequence[Mapping]) -> float:
    """What a guess that does not look at the example gets; see `evaluate`."""
    if task.labels is None:
        return entity_guess(metric, lm_eval_task, samples)
    counts = Counter(sample["doc"]["label"] for sample in samples)
    shares = [counts[label] / len(samples) for label in range(task.labels)]
    if metric == "acc":
        return max(1 / task.labels, *shares)
    # F1 of a label: 2 * precision * recall / (precision + recall), the precision of a guess being the label's share.
    uniform = sum(2 * share / (task.labels * share + 1) for share in shares) / task.labels
    frequent = 2 * max(shares) / (max(shares) + 1) / task.labels
    return max(uniform, frequent)


def entity_guess(metric: str, lm_eval_task: ConfigurableTask, samples: Sequence[Mapping]) -> float:
    """Mean of a metric over examples and, in each, over every entity taken as the answer."""
    total = 0.0
    for sample in samples:
        entities = len(sample["doc"]["entities"])
        for chosen in range(entities):
            likelihoods = [(float(entity == chosen), False) for entity in range(entities)]
            total += lm_eval_task.process_results(sample["doc"], likelihoods)[metric] / entities
    return total / len(samples)


def data_label(folder: str | Path | None) -> str:
    """The `data` column: the label in the folder's tasks.json, which says so where the tasks are synthetic."""
    if folder is None:
        return f"{HUB}@{HUB_REVISION[:7]}"
    description = Path(folder) / "tasks.json"
    found = read_json(description)
    label = found.get("data") if isinstance(found, dict) else None
    if not isinstance(label, str):
        raise InputError(f"{description}: expected an object with data, a label, found {str(found)[:60]}; correct it")
    return label
