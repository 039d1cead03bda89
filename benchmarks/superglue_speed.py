"""SuperGLUE through this project's lm-eval model and through lm-eval's own Hugging Face model, task by task.

    pip install -e '.[compare]'
    python benchmarks/superglue_speed.py OFFICIAL_DOWNLOAD TOKENIZER.json [--split val] [--tasks record rte]

One random GPT-2 for both (12 layers, width 768; the tokenizer is filled up to a vocabulary of 50257 with tokens that no
text has), the same examples, one process, one thread. For each task the two run one after the other, which first
changes from task to task. lm-eval's model runs at each of --batch-sizes and its best one counts. Time is that of
loglikelihood(), which takes prompts that are made before.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from krakenlm.errors import InputError
from krakenlm.evaluation import official, superglue
from krakenlm.evaluation.lm import KrakenLM
from krakenlm.models.importing import import_gpt2
from krakenlm.text.tokenizer import END_OF_TEXT, load_tokenizer

VOCABULARY = 50257  # GPT-2's


def make_models(folder: Path, tokenizer: Path, layers: int, width: int) -> tuple[HFLM, KrakenLM]:
    """lm-eval's Hugging Face model and this project's on the same random weights."""
    torch.manual_seed(0)
    known = load_tokenizer(tokenizer)
    known.add_tokens([f"<unused {number}>" for number in range(known.get_vocab_size(), VOCABULARY)])
    folder.mkdir()
    known.save(str(folder / "filled.json"))
    end = known.token_to_id(END_OF_TEXT)
    heads = max(1, width // 64)
    config = GPT2Config(
        vocab_size=known.get_vocab_size(),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "filled.json"), **special).save_pretrained(folder)
    import_gpt2(str(folder), folder / "ours", folder / "filled.json")
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1), KrakenLM(folder / "ours", "cpu")


def seconds(model: HFLM | KrakenLM, requests: list) -> tuple[float, list]:
    start = time.perf_counter()
    results = model.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - start, results


def compare(theirs: HFLM, ours: KrakenLM, requests: list, batch_sizes: list[int], ours_first: bool) -> tuple:
    """(their best seconds, our seconds, largest difference of a loglikelihood in nats)."""
    took = []
    if ours_first:
        our_seconds, found = seconds(ours, requests)
    for size in batch_sizes:
        theirs.batch_size_per_gpu = size
        each, expected = seconds(theirs, requests)
        took.append(each)
    if not ours_first:
        our_seconds, found = seconds(ours, requests)
    worst = max(abs(one[0] - other[0]) for one, other in zip(found, expected, strict=True))
    return min(took), our_seconds, worst


def main() -> None:
    parser = argparse.ArgumentParser(description="SuperGLUE's speed beside lm-eval's Hugging Face model.")
    parser.add_argument("download", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tasks", nargs="+", choices=superglue.TASKS, default=[*superglue.TASKS])
    parser.add_argument("--examples", type=int, help="of each task, the first so many; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        tasks = Path(temporary, "tasks")
        official.convert(options.download, options.split, tasks)
        theirs, ours = make_models(Path(temporary, "model"), options.tokenizer, options.layers, options.width)
        print("| task | requests | lm-eval's Hugging Face model, s | ours, s | ratio | largest difference, nats |")
        print("|---|---|---|---|---|---|")
        total = [0.0, 0.0]
        for number, key in enumerate(options.tasks):
            loaded = superglue.load_tasks(tasks)["tasks"][superglue.TASKS[key].lm_eval_name]
            loaded.build_all_requests(limit=options.examples)
            their_seconds, our_seconds, worst = compare(
                theirs, ours, loaded.instances, options.batch_sizes, ours_first=bool(number % 2)
            )
            total = [total[0] + their_seconds, total[1] + our_seconds]
            ratio = their_seconds / our_seconds
            print(
                f"| {key} | {len(loaded.instances)} | {their_seconds:.1f} | {our_seconds:.1f} | {ratio:.2f} | "
                f"{worst:.1e} |",
                flush=True,
            )
        print(f"| all | | {total[0]:.1f} | {total[1]:.1f} | {total[0] / total[1]:.2f} | |")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
