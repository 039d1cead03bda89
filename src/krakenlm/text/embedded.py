"""The embedded corpus, and tasks in the eight SuperGLUE formats about people that it never brings together.

Synthetic and small, for a machine without a network: short stories with questions and statements about them, worded
as lm-eval words SuperGLUE's. Every document's probability is known exactly, so the corpus has a known entropy: no
model's loss lies below it in expectation.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from krakenlm.config import data_label
from krakenlm.errors import InputError
from krakenlm.files import write_json, write_text
from krakenlm.text.formats import FORMATS
from krakenlm.text.world import Draws, couples

KNOWN_COUPLES, HELD_OUT_COUPLES = couples(held_out=False), couples(held_out=True)


def document(draws: Draws) -> str:
    """One story of any format, a question about it and the right answer.

    Different draws make different texts, so the draws' probability is the text's.
    """
    chosen = FORMATS[draws.weighted({name: chosen.weight for name, chosen in FORMATS.items()})]
    prompt, answers, right = chosen.text(chosen.row(draws, draws.one(KNOWN_COUPLES), None))
    return prompt + answers[right]


def documents(words: int, seed: int) -> Iterator[dict]:
    """Independent documents until they hold `words` words, each {"text": str, "nats": -ln of its probability}."""
    draws = Draws(f"documents {seed}")
    written = 0
    while written < words:
        text = document(draws)
        written += len(text.split())
        yield {"text": text, "nats": draws.take_nats()}


def write_tasks(out_dir: str | Path, *, seed: int, examples: int) -> None:
    """Write <task>.jsonl for each of the eight tasks: `examples` rows in the schema that lm-eval's tasks read.

    Every label has its equal share. The couples are in no document, so neither is a story. tasks.json holds the
    label for the `data` column.

    Raises:
        InputError: `examples` is not a positive number.
    """
    if examples < 1:
        raise InputError(f"evaluation.superglue.examples: expected at least 1, found {examples}; raise it")
    # Whoever reads tasks wants tasks.json first, so never reads those of two seeds.
    (Path(out_dir) / "tasks.json").unlink(missing_ok=True)
    for task, chosen in FORMATS.items():
        draws = Draws(f"{task} {seed}")
        rows = [chosen.row(draws, draws.one(HELD_OUT_COUPLES), number % chosen.labels) for number in range(examples)]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(out_dir) / f"{task}.jsonl", "".join(lines))
    write_json(Path(out_dir) / "tasks.json", {"data": data_label({"source": "embedded"}), "seed": seed})
