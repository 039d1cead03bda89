"""The official SuperGLUE download in the schema of its copy on the hub, which lm-eval's tasks read.

The download has a folder per task with train.jsonl, val.jsonl and test.jsonl (super.gluebenchmark.com). Some tasks
nest their examples, name their labels or mark spans by their ends.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from krakenlm.config import SUPERGLUE_FOLDERS as FOLDERS
from krakenlm.errors import InputError
from krakenlm.evaluation.superglue import parse_row
from krakenlm.files import write_json, write_text

# The place of a label is its number on the hub.
LABELS = {
    "boolq": (False, True),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": (0, 1),
    "multirc": (0, 1),
    "rte": ("entailment", "not_entailment"),
    "wic": (False, True),
    "wsc": (False, True),
}
SPLITS = ("train", "val", "test")


def convert(folder: str | Path, split: str, out: str | Path) -> None:
    """Write <task>.jsonl for each of the eight tasks, in the schema of aps/super_glue, and last tasks.json.

    Without the last there are no tasks, so whoever reads them never reads those of two splits.

    Args:
        folder: the download, with BoolQ/, CB/, COPA/, MultiRC/, ReCoRD/, RTE/, WiC/ and WSC/.
        split: train or val.
        out: folder to write; tasks.json holds the label for the `data` column.

    Raises:
        InputError: a file is missing, a line is not as its task has it, or the split has no labels.
    """
    if split not in SPLITS:
        raise InputError(
            f"evaluation.superglue.split: expected one of {', '.join(SPLITS)}, found {split!r}; choose one"
        )
    converted = {task: list(read_task(Path(folder), task, split)) for task in FOLDERS}
    # The folder stays, since a log may be open in it.
    (Path(out) / "tasks.json").unlink(missing_ok=True)
    for task, rows in converted.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(out) / f"{task}.jsonl", "".join(lines))
    write_json(Path(out) / "tasks.json", {"data": f"SuperGLUE, official {split}"})


def read_task(folder: Path, task: str, split: str) -> Iterator[dict]:
    """The rows of one task; MultiRC has one for each answer, ReCoRD one for each query."""
    path = folder / FOLDERS[task] / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(
            f"{path}: expected {FOLDERS[task]}'s examples of the official download, found no file; unpack all eight "
            f"tasks into {folder}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found a damaged file ({error}); download it again") from None
    if not any(map(str.strip, lines)):
        raise InputError(f"{path}: expected examples, found an empty file; download it again")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from rows_of_line(line, f"{path} line {number}", task)


def rows_of_line(line: str, place: str, task: str) -> Iterator[dict]:
    """The rows of one line, checked like those of any local task."""
    try:
        example = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: expected a JSON object, found {line[:60]!r} ({error}); download it again") from None
    try:
        rows = list(CONVERTERS.get(task, flat)(example))
        rows = [labelled(row, task, place) for row in rows]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{place}: expected an example of {FOLDERS[task]}, found one without what it needs "
            f"({type(error).__name__}: {error}); download it again"
        ) from None
    if not rows:
        raise InputError(f"{place}: expected a question with answers, found none; download it again")
    for row in rows:
        yield parse_row(json.dumps(row), place, task)


def labelled(row: Mapping, task: str, place: str) -> dict:
    """The row with its label as the hub numbers it; ReCoRD has answers in a label's place.

    Raises:
        InputError: there is none, as in SuperGLUE's test files, or it is another task's.
    """
    key = "label" if task in LABELS else "answers"
    if row.get(key) is None:
        raise InputError(
            f"{place}: expected {key}, found none: SuperGLUE keeps those of its test files to itself; use the "
            "validation files (split val)"
        )
    if key == "answers":
        return dict(row)
    names = LABELS[task]
    found = [number for number, name in enumerate(names) if name == row[key] and type(name) is type(row[key])]
    if not found:
        raise InputError(f"{place}: expected label {' or '.join(map(str, names))}, found {row[key]!r}; correct it")
    return row | {key: found[0]}


def flat(example: Mapping) -> Iterator[dict]:
    """BoolQ, CB, COPA, RTE and WiC have their fields side by side already."""
    yield dict(example)


def multirc(example: Mapping) -> Iterator[dict]:
    passage = example["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label"),
            }


def record(example: Mapping) -> Iterator[dict]:
    """One row per query; an entity is a span of the passage whose `end` is its last character."""
    text = example["passage"]["text"]
    entities = {text[span["start"] : span["end"] + 1] for span in example["passage"]["entities"]}
    for query in example["qas"]:
        answers = sorted({answer["text"] for answer in query["answers"]}) if "answers" in query else None
        yield {"passage": text, "query": query["query"], "entities": sorted(entities), "answers": answers}


RUN_TOGETHER = "theyscold"  # two words of one of the official examples


def wsc(example: Mapping) -> Iterator[dict]:
    """The hub's wsc.fixed, which lm-eval reads, spells a span as the text does where the official file does not."""
    text, target = example["text"], example["target"]
    row = {"text": text, "label": example.get("label")}
    for span in ("span1", "span2"):
        index = target[f"{span}_index"]
        row |= {f"{span}_index": index, f"{span}_text": as_in_text(target[f"{span}_text"], text, index)}
    if RUN_TOGETHER in target["span2_text"] and target["span2_text"] not in text:
        row["span2_index"] = 10  # as the hub has it
    yield row


def as_in_text(span: str, text: str, index: int) -> str:
    """`span`; where only that is in the text, with the case of the word at `index`, no last point, no line breaks."""
    if span in text:
        return span
    first = text.split()[index][0]
    fitted = (span[0].lower() if first.islower() else span[0].upper()) + span[1:].rstrip(".").replace("\n", " ")
    return fitted if fitted in text else span


CONVERTERS: dict[str, Callable[[Mapping], Iterator[dict]]] = {"multirc": multirc, "record": record, "wsc": wsc}
