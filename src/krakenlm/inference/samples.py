"""What trained models write: continuations of the beginnings of validation documents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from krakenlm.errors import InputError
from krakenlm.files import write_json
from krakenlm.inference.complete import complete
from krakenlm.models import load_config
from krakenlm.text.store import TokenStore
from krakenlm.text.tokenizer import end_token, load_tokenizer


def write_samples(
    models: Sequence[Path], tokens_dir: Path, out: Path, documents: int = 3, new_tokens: int = 60, seed: int = 0
) -> list[dict]:
    """Let every model go on from the same beginnings, and write JSON: {data, sampling, samples}.

    A beginning is the first half of a validation document, 32 tokens at most. `samples` has {model, seed, prompt, text}
    for each model and beginning, `model` and `seed` from the folder <name>/seed<k>-<hash>; tokens are drawn at
    temperature 0.8 from the likeliest with a probability of 0.95 together, with the same seed for every model.

    Raises:
        InputError: a folder has no model or no tokens, or the validation tokens are fewer than two.
    """
    store = TokenStore(tokens_dir)
    tokenizer = load_tokenizer(Path(models[0]) / "tokenizer.json")
    most = min(32, *(load_config(model).block_size // 2 for model in models))
    prompts = beginnings(store.tokens("val"), end_token(tokenizer, str(models[0])), documents, most)
    if not prompts:
        raise InputError(f"{tokens_dir}: expected a document of two tokens or more, found none; give more text")
    sampling = {"temperature": 0.8, "top_p": 0.95, "seed": seed}
    samples = []
    for model in map(Path, models):
        for ids in prompts:
            prompt = tokenizer.decode(ids)
            text = "".join(complete(model, prompt, new_tokens, sampling))
            name, k = model.parent.name, model.name.removeprefix("seed").split("-")[0]
            samples.append({"model": name, "seed": k, "prompt": prompt, "text": text})
    write_json(out, {"data": store.manifest.get("data", ""), "sampling": sampling, "samples": samples})
    return samples


def beginnings(ids_P: np.ndarray, end: int, documents: int, most: int) -> list[list[int]]:
    """The first half, at most `most` tokens, of the first documents that have two tokens or more before their end."""
    ends = np.flatnonzero(ids_P == end).tolist()
    starts = [0, *(place + 1 for place in ends)]
    halves = [(start, min((stop - start) // 2, most)) for start, stop in zip(starts, ends, strict=False)]
    return [ids_P[start : start + length].tolist() for start, length in halves if length][:documents]
