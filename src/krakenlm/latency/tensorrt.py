"""TensorRT-LLM's engines, timed: `mpirun -n K python -m krakenlm.latency.tensorrt ttft|engines ...`.

A module entry point, for an environment that has TensorRT-LLM 0.12.0 (Python 3.10) and of this project no more than its
source on PYTHONPATH. Runs, turns and tables are those of krakenlm.latency.ttft and krakenlm.latency.engines.
"""

import argparse
import contextlib
import json
import os
import statistics as stdlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from krakenlm import machine, models
from krakenlm.errors import InputError
from krakenlm.files import hold, read_json, write_table
from krakenlm.inference.tensorrt.available import refuse_without_tensorrt_llm
from krakenlm.latency import engines, statistics
from krakenlm.latency.exclusive import TIMING_LOCK, alone
from krakenlm.latency.ttft import COLUMNS, index_of_standard, row_of
from krakenlm.latency.turns import INTERLEAVE, interleave
from krakenlm.models.collectives import ALONE, WORLD, Done, Group
from krakenlm.text.store import TokenStore

if TYPE_CHECKING:
    from tensorrt_llm.runtime import ModelRunner

TTFT_SETTINGS = ("contexts", "batch", "runs", "most_runs", "precision", "warmup", "seed")
ENGINES_SETTINGS = ("prompts", "prompt_tokens", "new_tokens", "runs", "warmup")
# No token is -1, so that none ends a sequence.
NEVER, PADDING = -1, 0


class Mpi:
    """The Collectives contract over MPI, between runs: barriers and verdicts, on the host."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD
        self.rank, self.world = self._comm.Get_rank(), self._comm.Get_size()

    def all_reduce(self, x: Tensor, group: Group = WORLD) -> Done:
        return Done(self._comm.allreduce(x))

    def all_gather(self, x: Tensor, dim: int, group: Group = WORLD) -> Done:
        return Done(torch.cat(self._comm.allgather(x), dim=dim))

    def from_first(self, value: object) -> object:
        """Rank 0's value, on every rank."""
        return self._comm.bcast(value)


@contextlib.contextmanager
def timing(comm: Mpi, out: Path, stage: str) -> Iterator[None]:
    """Have rank 0 hold the output's lock, the machine's timing lock and a GPU for each rank; no other process uses them
    meanwhile. TensorRT-LLM, which looks for its GPU when it is imported, is to be imported inside.
    """
    with contextlib.ExitStack() as stack:
        if comm.rank == 0:
            stack.enter_context(hold(out, stage))
            stack.enter_context(alone(TIMING_LOCK, stage))
            stack.enter_context(machine.leased_gpus(comm.world if machine.count_gpus() else 0, stage))
        visible = comm.from_first(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        yield
        comm.all_reduce(torch.zeros(1)).wait()  # nobody is at work any more when the locks go


def describe(folder: Path, ranks: int, batch: int, prompt: int, new: int) -> dict:
    """What config.json of a folder of engines says of its model, once it is known that the runs fit the engines.

    Raises:
        InputError: engines of another number of ranks, or built for smaller inputs.
    """
    described = read_json(folder / "config.json")
    model, built = described["pretrained_config"], described["build_config"]
    tp = model["mapping"]["tp_size"]
    if tp != ranks:
        raise InputError(f"{folder}: expected engines for mpirun's {ranks} ranks, found them for {tp}; use -n {tp}")
    most = built["max_batch_size"], built["max_input_len"], built["max_seq_len"] - built["max_input_len"]
    if batch > most[0] or prompt > most[1] or prompt + new > built["max_seq_len"]:
        raise InputError(
            f"{folder}: expected engines for {batch} prompts of {prompt} tokens and {new} new ones, found them for "
            f"{most[0]} of {most[1]} and {most[2]}; build them anew"
        )
    return model


def load_engine(folder: Path, rank: int) -> "ModelRunner":
    """One rank's engine, ready to run."""
    from tensorrt_llm.runtime import ModelRunner

    from krakenlm.inference.tensorrt import definitions

    definitions.register()  # the runtime looks the class up, too
    return ModelRunner.from_dir(str(folder), rank=rank)


def time_to_first_token(comm: Mpi, folders: list[Path], settings: dict) -> tuple[list[dict], dict]:
    """Body of one rank: every engine's model (config.json), and what krakenlm.latency.ttft.row_of reads of the runs."""
    longest = max(settings["contexts"])
    described = [describe(each, comm.world, settings["batch"], longest, new=1) for each in folders]
    runners = [load_engine(each, comm.rank) for each in folders]
    times: dict = {"link": link(comm.world), "link_gbit": "", "milliseconds": {}, "per_token": {}, "machine": {}}
    standard = index_of_standard([named(model) for model in described])

    def enough(taken: list[list[float]]) -> bool:
        done = standard is None or statistics.precise(taken[standard], taken, settings["precision"])
        return len(taken[0]) >= settings["most_runs"] or (len(taken[0]) >= settings["runs"] and done)

    for context in settings["contexts"]:
        shape = (settings["batch"], context)
        generator = torch.Generator().manual_seed(settings["seed"])
        prompts_BT = torch.randint(described[0]["vocab_size"], shape, generator=generator, dtype=torch.int32)
        # The runtime's buffers are no part of a request.
        ready = [lambda runner=runner, shape=shape: runner.session.setup(*shape, 1) for runner in runners]
        steps = [
            lambda runner=runner, prompts_BT=prompts_BT: next(generate(runner, prompts_BT, new_tokens=1))
            for runner in runners
        ]
        watch = statistics.Watch()
        times["milliseconds"][str(context)] = interleave(steps, comm, "cpu", settings["warmup"], enough, ready)
        times["machine"][str(context)] = watch.stop(comm, "cpu")
        times["per_token"][str(context)] = [[] for _ in runners]  # engines of one new token
    return described, times


def named(model: dict) -> dict:
    """The name and the sizes by which krakenlm.latency.ttft knows a model."""
    return {"name": model["krakenlm"]["architecture"], "sizes": model["krakenlm"]}


def padding(model: dict) -> float:
    """How many times as large padded heads, and so the KV cache, are."""
    return 1 / model["q_scaling"] ** 2


def generate(runner: "ModelRunner", prompts_BT: Tensor, new_tokens: int) -> Iterator[list[int]]:
    """Yield `new_tokens` times the next token of each prompt, as soon as it is on the host, from prompts on the host.

    The runner's session has to be set up for these sizes, anew for each call.
    """
    from tensorrt_llm.runtime import SamplingConfig

    inputs = [prompt_T.to(runner.session.device) for prompt_T in prompts_BT]
    config = SamplingConfig(end_id=NEVER, pad_id=PADDING, max_new_tokens=new_tokens)
    place = prompts_BT.shape[1]
    for tokens_B1T in runner.session.decode_batch(inputs, config, streaming=True):
        yield tokens_B1T[:, 0, place].tolist()
        place += 1
        if place == prompts_BT.shape[1] + new_tokens:
            return


def run_engine(comm: Mpi, folder: Path, windows: list[list[int]], settings: dict) -> dict:
    """Body of one rank: what the engine generates from each prompt, then its runs, prompts one at a time."""
    prompt, new = settings["prompt_tokens"], settings["new_tokens"]
    describe(folder, comm.world, 1, prompt, new)
    runner = load_engine(folder, comm.rank)
    generated, first, rest = [], [], []
    for window in windows:
        runner.session.setup(1, prompt, new)
        generated.append([token for [token] in generate(runner, torch.tensor([window], dtype=torch.int32), new)])
    watch = statistics.Watch()
    for run in range(settings["warmup"] + settings["runs"]):
        prompts_1T = torch.tensor([windows[run % len(windows)]], dtype=torch.int32)
        runner.session.setup(1, prompt, new)
        comm.all_reduce(torch.zeros(1)).wait()
        start = time.perf_counter()
        moments = [time.perf_counter() for _ in generate(runner, prompts_1T, new)]
        if run >= settings["warmup"]:
            first.append(1e3 * (moments[0] - start))
            rest.append((new - 1) / (moments[-1] - moments[0]) if new > 1 else 0.0)
    return {
        "generated": generated,
        "ttft_ms_median": stdlib.median(first),
        "ttft_ms_std": stdlib.stdev(first) if len(first) > 1 else 0.0,
        "tokens_per_second": stdlib.median(rest) if new > 1 else "",
        **statistics.drift(np.asarray(first)),
        **watch.stop(comm, "cpu"),
    }


@torch.inference_mode()
def whole_models_tokens(model: Path, windows: list[list[int]], new_tokens: int) -> list[list[int]]:
    """What the whole model generates in PyTorch, in float32, from the same prompts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts_BT = torch.tensor(windows, device=device)
    module = models.load_model(model).to(device)
    return engines.sequences(module, prompts_BT, new_tokens, ALONE)[:, prompts_BT.shape[1] :].tolist()


def engine_row(found: dict, folder: Path, model: Path, settings: dict, whole: list[list[int]]) -> dict:
    """What krakenlm.latency.engines says of an engine, of this one and its runs."""
    described = read_json(folder / "config.json")["pretrained_config"]
    tp = described["mapping"]["tp_size"]
    row = {key: settings[key] for key in ("prompts", "prompt_tokens", "new_tokens", "runs")}
    row |= {"tp": tp, "engine": "tensorrt_llm", "dtype": described["dtype"], "device": machine.device()}
    row |= {"link": link(tp), "interleave": "alone", "identical": found["generated"] == whole}
    return row | engines.describe(model) | found


def link(tp: int) -> str:
    return "none" if tp == 1 else "TensorRT-LLM"


def ttft_rows(described: list[dict], times: dict, settings: dict) -> list[dict]:
    """The rows of krakenlm.latency.ttft, of these engines and their runs."""
    dtype, tp = described[0]["dtype"], described[0]["mapping"]["tp_size"]
    given = {"tp": tp, "batch": settings["batch"], "device": machine.device(), "engine": "tensorrt_llm", "dtype": dtype}
    given |= {"source": "measured", "interleave": INTERLEAVE, "seed": settings["seed"]}
    timed = [named(model) for model in described]
    rows = []
    for context in map(str, settings["contexts"]):
        for index, model in enumerate(described):
            row = given | row_of(timed, times, index, context, dtype)
            row["layers_measured"] = model["num_hidden_layers"]
            row["kv_bytes_per_token"] = round(row["kv_bytes_per_token"] * padding(model))
            rows.append(row)
    return rows


def read_settings(text: str, keys: tuple[str, ...]) -> dict:
    """The settings that these runs need, from JSON that may have more.

    Raises:
        InputError: it is not JSON, or lacks a key.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"--settings: expected JSON, found {text!r} ({error}); correct it") from None
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            raise InputError(f"--settings: {key}: expected a value, found none; see docs/configuration.md")
    return {key: values[key] for key in keys}


def ttft(options: argparse.Namespace) -> None:
    """Time the first token of engines of one size, in turns."""
    settings, comm = read_settings(options.settings, TTFT_SETTINGS), Mpi()
    with timing(comm, options.out, "ttft"):
        described, times = time_to_first_token(comm, options.engines, settings)
        if comm.rank == 0:
            given = {"size": options.size, "scale": options.scale, "run": options.run}
            rows = ttft_rows(described, times, settings)
            write_table(options.out, [row | given for row in rows], COLUMNS)


def engine(options: argparse.Namespace) -> None:
    """Compare an engine's tokens with its whole model's, and time it."""
    settings, comm = read_settings(options.settings, ENGINES_SETTINGS), Mpi()
    store = TokenStore(options.tokens)
    windows = engines.prompt_windows(
        store.tokens("val"), settings["prompts"], settings["prompt_tokens"], options.tokens
    )
    with timing(comm, options.out, "engines"):
        found = run_engine(comm, options.engine, windows, settings)
        if comm.rank == 0:
            whole = whole_models_tokens(options.model, windows, settings["new_tokens"])
            row = engine_row(found, options.engine, options.model, settings, whole)
            row |= {"model": options.name, "data": store.manifest["data"], "scale": options.scale, "run": options.run}
            write_table(options.out, [row], engines.COLUMNS)


def main(arguments: list[str]) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--settings", required=True, help="keys of the section `latency` or `engines` as JSON")
    shared.add_argument("--out", type=Path, required=True, help="table to write")
    shared.add_argument("--scale", default="", help="scale, for the column of that name")
    shared.add_argument("--run", default="", help="folder below results/, for the column of that name")
    parser = argparse.ArgumentParser(prog="python -m krakenlm.latency.tensorrt", description=__doc__)
    stages = parser.add_subparsers(required=True)
    stage = stages.add_parser("ttft", parents=[shared], help=ttft.__doc__)
    stage.add_argument("engines", type=Path, nargs="+", help="folders of engines of one size")
    stage.add_argument("--size", default="", help="name of the size, for the table")
    stage.set_defaults(stage=ttft)
    stage = stages.add_parser("engines", parents=[shared], help=engine.__doc__)
    stage.add_argument("engine", type=Path, help="folder of engines of a trained model")
    stage.add_argument("--model", type=Path, required=True, help="the model's folder")
    stage.add_argument("--name", required=True, help="the model's name, for the table")
    stage.add_argument("--tokens", type=Path, required=True, help="tokens folder, for prompts")
    stage.set_defaults(stage=engine)
    options = parser.parse_args(arguments)
    refuse_without_tensorrt_llm()
    options.stage(options)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"krakenlm: {error}")
