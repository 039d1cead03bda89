"""The tokenize stage, files in to verified token files out, against the bare tokenizer's batch call on the same text.

    python benchmarks/tokenize_stage.py --gpt2 FOLDER          # with vocab.bpe and encoder.json; a trained BPE without
    python benchmarks/tokenize_stage.py --megabytes 2000 --rounds 1      # memory on a large corpus

Both have the same cores and take turns. The stage is the commands that Snakemake runs, process starts included: the
corpus stage, every shard in a process of its own (as many at once as there are cores given), the tokens stage. The bare
call gets documents that are in memory already, one process per core.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
    share = 1 / np.arange(1, len(words) + 1)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for length in draw.integers(100, 900, 100):
                text = " ".join(draw.choice(words, length, p=share / share.sum()))
                file.write(json.dumps({"text": text.replace(" the", ".\nThe")}) + "\n")


def run(*arguments: object) -> int:
    """Run a krakenlm command; returns its peak of memory in bytes."""
    command = [sys.executable, "-c", "from krakenlm.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, env=os.environ | {"WANDB_MODE": "disabled"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: failed")
    return usage.ru_maxrss * 1024


def stage(folder: Path, cores: int, shards: int) -> tuple[float, int]:
    """Seconds of the whole stage, and the largest peak of memory of its processes together that run at once."""
    settings = {"source": "files", "files": [str(folder / "text.jsonl")], "column": "text", "document": "line"}
    settings |= {"seed": 0, "validation_share": 0.001}
    corpus, tokens, tokenizer = folder / "corpus", folder / "tokens", folder / "tokenizer.json"
    begin = time.perf_counter()
    text = json.dumps(settings)
    peaks = [run("corpus", "--text", text, "--shards", shards, "--processes", cores, "--out", corpus)]
    common = ("tokenize", "--corpus", corpus, "--tokenizer", tokenizer, "--out", tokens, "--threads")
    with ThreadPoolExecutor(cores) as pool:
        at_once = sorted(pool.map(lambda shard: run(*common, 1, "--shard", shard), range(shards)))
    peaks.append(sum(at_once[-cores:]))
    peaks.append(run(*common, cores))
    return time.perf_counter() - begin, max(peaks)


def bare(folder: Path, part: int, parts: int, ready: object, seconds: object) -> None:
    """Encode every parts-th batch of documents, all in memory before the clock starts."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    encoder = Encoder(folder / "tokenizer.json", threads=1)
    mine = list(batches(Corpus(folder / "corpus").documents()))[part::parts]
    ready.wait()
    begin = time.perf_counter()
    for texts in mine:
        if encoder.encoding is not None:
            encoder.encoding.encode_ordinary_batch(texts, num_threads=1)
        else:
            encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    seconds.put(time.perf_counter() - begin)


def bare_seconds(folder: Path, cores: int) -> float:
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(cores), context.Queue()
    processes = [context.Process(target=bare, args=(folder, part, cores, ready, seconds)) for part in range(cores)]
    for process in processes:
        process.start()
    slowest = max(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
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
        shares = []
        print(
            f"{megabytes:.0f} MB, {options.cores} cores, {shards} shards, tokenizer {options.gpt2 or 'trained, 32,000'}"
        )
        print(f"{'round':>5}{'bare MB/s':>12}{'stage MB/s':>12}{'share':>8}{'peak MB':>9}")
        for number in range(options.rounds):
            alone = bare_seconds(folder, options.cores)
            whole, peak = stage(folder, options.cores, shards)
            shares.append(alone / whole)
            rates = f"{megabytes / alone:12.2f}{megabytes / whole:12.2f}"
            print(f"{number:5}{rates}{shares[-1]:8.3f}{peak / 1e6:9.0f}", flush=True)
        print(f"median share {statistics.median(shares):.3f}")


if __name__ == "__main__":
    main()
