"""The tokenize stage, files in to verified token files out, against the bare tokenizer's batch call on the same text.

    python benchmarks/tokenize_stage.py --gpt2 FOLDER          # with vocab.bpe and encoder.json; a trained BPE without
    python benchmarks/tokenize_stage.py --megabytes 2000 --stage-only    # memory on a large corpus

Both have the same cores and take turns. The stage is the commands that Snakemake runs, process starts included: the
corpus stage, every shard in a process of its own (as many at once as there are cores given), the tokens stage. The bare
call gets documents that are in memory already, one process per core.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from krakenlm.text.documents import Corpus
from krakenlm.text.tokenizer import Encoder, fetch_tokenizer, train_tokenizer
from krakenlm.text.tokenizing import batches

SHARD_MEGABYTES = 64


def write_text(path: Path, megabytes: int) -> None:
    """Documents of some 500 words, drawn as words are in language: the n-th most frequent one 1/n as often."""
    draw = np.random.default_rng(0)
    letters = np.array(list("eeetaoinshrdlu" * 2 + "cmfwypvbgkqjxz"))
    words = np.array(["".join(draw.choice(letters, length)) for length in draw.integers(2, 11, 50_000)])
    share = np.cumsum(1 / np.arange(1, len(words) + 1))
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for length in draw.integers(100, 900, 100):
                text = " ".join(words[share.searchsorted(share[-1] * draw.random(length))].tolist())
                file.write(json.dumps({"text": text.replace(" the", ".\nThe")}) + "\n")


def run(*arguments: object) -> int:
    """Run a krakenlm command; returns the peak of memory, in bytes, of the largest of its processes."""
    command = [sys.executable, "-c", "from krakenlm.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, env=os.environ | {"WANDB_MODE": "disabled"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: failed")
    return usage.ru_maxrss * 1024


def stage(folder: Path, cores: int, shards: int) -> tuple[float, list[int]]:
    """(seconds of the whole stage; bytes of memory that its processes of one time have together at most: those of the
    corpus stage, as many shards as there are cores, the tokens stage).
    """
    settings = {"source": "files", "files": [str(folder / "text.jsonl")], "column": "text", "document": "line"}
    settings |= {"seed": 0, "validation_share": 0.001}
    corpus, tokens, tokenizer = folder / "corpus", folder / "tokens", folder / "tokenizer.json"
    begin = time.perf_counter()
    text = json.dumps(settings)
    # The stage's own process and those that read, none larger than the largest.
    peaks = [(1 + cores) * run("corpus", "--text", text, "--shards", shards, "--processes", cores, "--out", corpus)]
    common = ("tokenize", "--corpus", corpus, "--tokenizer", tokenizer, "--out", tokens, "--threads")
    with ThreadPoolExecutor(cores) as pool:
        at_once = sorted(pool.map(lambda shard: run(*common, 1, "--shard", shard), range(shards)))
    peaks.append(sum(at_once[-cores:]))
    peaks.append(run(*common, cores))
    return time.perf_counter() - begin, peaks


def meet(barrier: object) -> None:
    """Give a process where it meets the others, and one thread."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    bare.ready = barrier


def bare(folder: Path, part: int, parts: int) -> float:
    """Seconds for every parts-th batch of documents, all in memory before the clock starts."""
    encoder = Encoder(folder / "tokenizer.json", threads=1)
    mine = list(itertools.islice(batches(Corpus(folder / "corpus").documents()), part, None, parts))
    bare.ready.wait()
    begin = time.perf_counter()
    for texts in mine:
        if encoder.encoding is not None:
            encoder.encoding.encode_ordinary_batch(texts, num_threads=1)
        else:
            encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - begin


def bare_seconds(folder: Path, cores: int) -> float:
    context = multiprocessing.get_context("spawn")
    # A pool, which says that a process of it has died; a queue would wait for it.
    with ProcessPoolExecutor(cores, context, meet, (context.Barrier(cores),)) as pool:
        return max(pool.map(bare, [folder] * cores, range(cores), [cores] * cores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--stage-only", action="store_true", help="once, without the bare call")
    parser.add_argument("--gpt2", help="folder with vocab.bpe and encoder.json")
    options = parser.parse_args()
    shards = max(options.cores, -(-options.megabytes // SHARD_MEGABYTES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", options.megabytes)
        megabytes = (folder / "text.jsonl").stat().st_size / 1e6
        settings = {"source": "files", "files": [str(folder / "text.jsonl")], "column": "text", "document": "line"}
        text = json.dumps(settings | {"seed": 0, "validation_share": 0.001})
        run("corpus", "--text", text, "--out", folder / "corpus")
        if options.gpt2:
            fetch_tokenizer(options.gpt2, folder / "tokenizer.json")
        else:
            train_tokenizer(folder / "corpus", 32_000, folder / "tokenizer.json")
        tokenizer = options.gpt2 or "trained, 32,000"
        print(f"{megabytes:.0f} MB, {options.cores} cores, {shards} shards, tokenizer {tokenizer}")
        if options.stage_only:
            whole, peaks = stage(folder, options.cores, shards)
            parts = zip(("corpus", "shards", "tokens"), peaks, strict=True)
            described = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in parts)
            print(f"stage {megabytes / whole:.2f} MB/s, peaks of memory: {described}")
            return
        shares = []
        print(f"{'round':>5}{'bare MB/s':>12}{'stage MB/s':>12}{'share':>8}{'peak MB':>9}")
        for number in range(options.rounds):
            alone = bare_seconds(folder, options.cores)
            whole, peaks = stage(folder, options.cores, shards)
            shares.append(alone / whole)
            rates = f"{megabytes / alone:12.2f}{megabytes / whole:12.2f}"
            print(f"{number:5}{rates}{shares[-1]:8.3f}{max(peaks) / 1e6:9.0f}", flush=True)
        print(f"median share {statistics.median(shares):.3f}")


if __name__ == "__main__":
    main()
