"""The engine on one rank against Hugging Face's GPT-2: the same weights, prompt and threads, in turns.

    python benchmarks/engine_vs_transformers.py

GPT-2's shape of 124 million parameters, random weights, float32, batch 1, one thread: prefill of a prompt to the last
position's logits, with the KV cache kept. Both give the same logits, which is checked first.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from krakenlm.inference.cache import Cache
from krakenlm.inference.shards import as_engine, load_rank, write_shards
from krakenlm.latency.statistics import speedup
from krakenlm.latency.turns import interleave
from krakenlm.machine import keep_freed_memory
from krakenlm.models import build, save_model
from krakenlm.models.blocks import LAST
from krakenlm.models.collectives import ALONE
from krakenlm.models.importing import gpt2_sizes, gpt2_weights

CONTEXTS, RUNS, WARMUP = (128, 512), 20, 2


@torch.inference_mode()
def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = models_of_equal_weights(Path(folder))
    print("| context | transformers, ms | engine, ms | transformers over engine (95% interval) |\n|---|---|---|---|")
    for context in CONTEXTS:
        tokens_1T = torch.arange(context)[None]
        cache = Cache(ours, 1, context)

        def theirs_prefill(tokens_1T=tokens_1T):
            return theirs(tokens_1T, use_cache=True, logits_to_keep=1).logits

        def ours_prefill(tokens_1T=tokens_1T, cache=cache):
            cache.rewind()
            return ours(tokens_1T, ALONE, cache, LAST)

        torch.testing.assert_close(ours_prefill()[..., :50257], theirs_prefill(), rtol=1e-3, atol=1e-3)
        taken = interleave([theirs_prefill, ours_prefill], ALONE, "cpu", WARMUP, lambda taken: len(taken[0]) >= RUNS)
        ratio, low, high = speedup(*taken)
        medians = " | ".join(f"{statistics.median(each):.1f}" for each in taken)
        print(f"| {context} | {medians} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


def models_of_equal_weights(folder: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Hugging Face's model, and the engine loaded from shards of it."""
    theirs = GPT2LMHeadModel(GPT2Config()).eval()
    theirs.config.save_pretrained(folder)
    sizes = gpt2_sizes(folder / "config.json")
    module = build(sizes)
    module.load_state_dict(gpt2_weights(folder, theirs.transformer.state_dict(), sizes))
    save_model(module, folder / "model")
    write_shards(folder / "model", folder / "shards", 1)
    return theirs, as_engine(load_rank(folder / "shards", 0, 1))


if __name__ == "__main__":
    main()
