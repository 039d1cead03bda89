"""The model card of an exported folder: what is known of a model, and nothing else."""

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from krakenlm.errors import InputError
from krakenlm.files import read_json, write_text
from krakenlm.models.blocks import Config
from krakenlm.models.sizing import parameter_count

TABLES = ("perplexity.csv", "superglue.csv")
# Column of a table -> heading in the card.
PERPLEXITY = {"data": "data", "protocol": "protocol", "loss": "loss", "perplexity": "perplexity"}
PERPLEXITY |= {"bits_per_byte": "bits per byte"}
SUPERGLUE = {"task": "task", "metric": "metric", "value": "score", "stderr": "standard error", "n": "examples"}
SUPERGLUE |= {"chance": "chance", "data": "data"}

USE = """## Use

It needs torch and transformers 5 (made for 5.17). The architecture's code is in this folder, so loading it has to be
allowed:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

A sequence, prompt and padding included, has at most {block_size} tokens. Prompts of different lengths are padded on the
left."""

KINDS = {
    "standard": "a GPT-2 (pre-LayerNorm Transformer)",
    "parallel": "a Transformer whose attention and feed-forward run in parallel, as in GPT-J and PaLM",
    "ladder": "a Ladder-Residual Transformer ([arXiv 2501.06589](https://arxiv.org/abs/2501.06589))",
    "kraken": "a Kraken ([arXiv 2408.07802](https://arxiv.org/abs/2408.07802))",
}


def write_card(
    folder: Path,
    name: str,
    model: Path,
    config: Config,
    scores: str | Path | None,
    run: str,
    weights_license: str | None,
) -> None:
    """Write `folder`/README.md about the model in folder `model`; see huggingface.export_huggingface.

    Raises:
        InputError: `scores` has no row of `run`, or the license is no identifier.
    """
    if weights_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", weights_license):
        raise InputError(
            f"weights_license: expected an identifier such as mit or cc-by-4.0, found {weights_license!r}; correct it"
        )
    path = model / "metrics.json"  # not there where Python code saved the model
    metrics = read_json(path) if path.is_file() else {}
    parts = [
        front_matter(config, weights_license),
        f"# {name}",
        description(config),
        USE.format(name=name, prompt="Once upon a time", block_size=config.block_size),
        data(metrics),
        recipe(metrics),
        *([] if scores is None else results(Path(scores), run)),
        license_section(weights_license),
    ]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def front_matter(config: Config, weights_license: str | None) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += [f"license: {weights_license}"] if weights_license else []
    return "\n".join(["---", *lines, "tags:", "- krakenlm", f"- {config.architecture}", "---"])


def description(config: Config) -> str:
    sizes = config.to_dict()
    splits = f", {config.splits} splits of width {config.width}" if config.architecture == "kraken" else ""
    width = "" if splits else f", width {config.width}"
    kind = KINDS.get(config.architecture, f"a {config.architecture} Transformer")
    return (
        f"This is {kind}, made with krakenlm: {parameter_count(sizes):,} parameters, "
        f"{config.n_layer} layers{splits}{width}, {config.n_head} attention heads{' in all' if splits else ''}, "
        f"a vocabulary of {config.vocab_size}, sequences of up to {config.block_size} tokens, "
        f"{'with' if config.bias else 'no'} biases, {'a tied' if config.tied else 'an untied'} head."
    )


def data(metrics: Mapping) -> str:
    """What it was trained on, or where it comes from."""
    lines = []
    if "source" in metrics:
        elsewhere = "" if "tokens" in metrics else " What they were trained on is documented there."
        lines.append(f"The weights come from elsewhere: {metrics['source']}.{elsewhere}")
    if "tokens" in metrics:
        tokens = metrics["tokens"]
        splits = [("training", tokens["splits"]["train"]), ("validation", tokens["splits"]["val"])]
        counts = [f"{part['tokens']:,} tokens in {part['documents']:,} documents for {use}" for use, part in splits]
        lines.append(
            f"Trained on {tokens['data']}: {', '.join(counts)}, a tokenizer of {tokens['vocabulary']:,} tokens."
        )
    if metrics.get("tokens_seen"):
        lines.append(f"The model saw {metrics['tokens_seen']:,} tokens.")
    return "\n".join(["## Data", "", *lines]) if lines else ""


def recipe(metrics: Mapping) -> str:
    if "recipe" not in metrics:
        return ""
    seed = {"seed": metrics["seed"]}
    rows = [(f"`{key}`", str(value)) for key, value in (metrics["recipe"] | seed).items()]
    return f"## Recipe\n\n{table(('setting', 'value'), rows)}"


def results(folder: Path, run: str) -> list[str]:
    """The sections of scores, from the rows of `run` in the tables in `folder`."""
    rows = {name: rows_of(folder / name) for name in TABLES if (folder / name).is_file()}
    if not rows:
        raise InputError(f"{folder}: expected {' or '.join(TABLES)}, found neither; give the folder of results")
    own = {name: [row for row in found if row.get("run") == run] for name, found in rows.items()}
    if not any(own.values()):
        runs = sorted({row.get("run", "") for found in rows.values() for row in found})
        raise InputError(
            f"{folder}: expected rows of the run {run}, found those of {', '.join(runs) or 'none'}; give this model's "
            "results"
        )
    for name in sorted(name for name in rows if not own[name]):
        print(f"export: {folder / name} has no row of {run}: the card goes without", file=sys.stderr)
    sections = []
    for name, title, columns in (TABLES[0], "Perplexity", PERPLEXITY), (TABLES[1], "SuperGLUE, zero-shot", SUPERGLUE):
        if own.get(name):
            cells = [[rounded(row.get(column, "")) for column in columns] for row in own[name]]
            sections.append(f"## {title}\n\n{table(columns.values(), cells)}")
    return sections


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rounded(cell: str) -> str:
    """A number with a point to four digits; anything else as it is."""
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", cell) else cell


def license_section(weights_license: str | None) -> str:
    weights = f" The weights: {weights_license}." if weights_license else ""
    return f"## License\n\nThe code in this folder: MIT (LICENSE).{weights}"


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
