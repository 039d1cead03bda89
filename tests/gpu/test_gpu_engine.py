"""The engine's own processes on a GPU, generation, and NCCL, as far as one GPU shows it."""

import json
import signal

import pytest
import torch
import torch.distributed as dist
from gpu_cases import ARCHITECTURES, DEVICE, VOCABULARY, drawn, tokens

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import Distributed
from krakenlm.inference.complete import complete, pieces, tokens_on_rank
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import run_ranks, stream_ranks
from krakenlm.inference.recorded import RecordedPrefill, cuda_graph
from krakenlm.inference.shards import cut_rank, write_shards
from krakenlm.models.collectives import ALONE, Group
from krakenlm.text.corpus import Found, describe
from krakenlm.text.tokenizer import end_token, load_tokenizer, train_tokenizer

PROMPT, NEW = list(range(40)), 24


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{architecture: model folder}."""
    folders = {}
    for architecture in ARCHITECTURES:
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        models.save_model(drawn(architecture, "heads of 15"), folders[architecture])
    return folders


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_generates_the_tokens_of_the_cpu(architecture, saved):
    arguments = {"prompt": PROMPT, "new_tokens": NEW, "sampling": None, "vocabulary": VOCABULARY}
    on_cpu, on_gpu = (
        list(tokens_on_rank(ALONE, device, str(saved[architecture]), **arguments)) for device in ("cpu", DEVICE)
    )
    assert len(on_cpu) == NEW
    assert on_gpu == on_cpu


def test_a_seed_draws_the_same_tokens_on_a_gpu(saved):
    sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 3}
    on_cpu, on_gpu = (
        list(tokens_on_rank(ALONE, device, str(saved["kraken-2"]), PROMPT, NEW, sampling, VOCABULARY))
        for device in ("cpu", DEVICE)
    )
    assert on_gpu == on_cpu


def test_a_ranks_process_on_the_gpu_streams_what_generate_prints(tmp_path):
    corpus, model = tmp_path / "corpus", tmp_path / "model"
    corpus.mkdir()
    (corpus / "train.jsonl").write_text(json.dumps({"text": "naïve café, 10 €"}) + "\n")
    describe(corpus, Found([corpus / "train.jsonl"], held_out=[corpus / "train.jsonl"]), {"source": "embedded"})
    train_tokenizer(corpus, 300, model / "tokenizer.json")
    tokenizer = load_tokenizer(model / "tokenizer.json")
    torch.manual_seed(0)
    sizes = {"architecture": "kraken", "degree": 2, "n_layer": 2, "n_head": 2, "width": 18, "block_size": 48}
    models.save_model(models.build(sizes | {"vocab_size": tokenizer.get_vocab_size()}), model)
    arguments = {"prompt": tokenizer.encode("café").ids, "new_tokens": 16, "sampling": None}
    arguments |= {"model": str(model), "vocabulary": tokenizer.get_vocab_size()}
    streamed = stream_ranks("krakenlm.inference.complete:tokens_on_rank", arguments, world=1, threads=1)
    text = "".join(pieces(streamed, tokenizer, end_token(tokenizer, str(model))))
    assert text == "".join(complete(model, "café", 16))


def test_sharded_engines_generate_on_the_gpu_what_whole_models_generate(saved, tmp_path):
    entries = []
    for architecture, folder in saved.items():
        write_shards(folder, tmp_path / architecture / "tp1", 1)
        entries.append([str(folder), str(tmp_path / architecture / "tp1")])
    measured = run_ranks(
        "krakenlm.latency.engines:measure_on_rank",
        {"entries": entries, "prompts": tokens(2, 40).tolist(), "new_tokens": 6, "runs": 2, "warmup": 1},
        world=1,
        threads=1,
    )
    assert measured["link"] == "none"
    for architecture, row in zip(saved, measured["rows"], strict=True):
        assert row["identical"], (architecture, row)
        assert row["max_logit_difference"] < 1e-4, (architecture, row)
        assert row["ttft_ms_median"] > 0
        assert row["tokens_per_second"] > 0


class SeemsTwo:
    """The one rank there is, which does not look alone: what would be left out for a group of one is done."""

    def __iter__(self):
        return iter((0,))

    def __len__(self):
        return 2


def through_nccl(comm, device, store, folders):
    """Sums and gatherings of a group of one, then every model with all of its collectives, recorded and not."""
    signal.alarm(90)  # what hangs ends, and says so
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    said = {"started": [device, comm.world, dist.get_backend()]}
    Group.ranks = lambda group, rank, world: SeemsTwo()
    comm = Distributed()
    x, total, gathered = (torch.full((3, 5), 2.0, device=device) for _ in range(3))

    def collectives():
        pending = comm.all_reduce(x)
        gathered.copy_(comm.all_gather(2 * x, dim=-1).wait())
        total.copy_(pending.wait() + x)

    collectives()
    said["once"] = [total.unique().tolist(), gathered.unique().tolist()]
    replay = cuda_graph(collectives)
    x.fill_(7)
    replay()
    said["replayed"] = [total.unique().tolist(), gathered.unique().tolist()]
    del replay
    for folder in folders:
        module = cut_rank(folder, 0, 1, device)
        prompts = [tokens(1, 40, seed) for seed in (1, 2)]
        recorded = RecordedPrefill(module, 1, 40, comm, Cache(module, 1, 40))
        said[folder] = {
            "alone": [next(generate(module, each.to(device), 1)).tolist() for each in prompts],
            "through": [next(generate(module, each.to(device), 1, comm)).tolist() for each in prompts],
            "recorded": [recorded(each).tolist() for each in prompts],
        }
        del recorded  # a graph with NCCL's kernels keeps its communicators from being ended
    dist.barrier()
    dist.destroy_process_group()
    return said


def test_nccl_sums_and_gathers_and_is_recorded(importable, saved, tmp_path):
    arguments = {"store": str(tmp_path / "store"), "folders": [str(each) for each in saved.values()]}
    said = run_ranks(f"{importable}:through_nccl", arguments, world=1, threads=2)
    assert said.pop("started") == ["cuda:0", 1, "nccl"]
    assert said.pop("once") == [[4.0], [4.0]]
    assert said.pop("replayed") == [[14.0], [14.0]]
    for folder, found in said.items():
        assert found["through"] == found["alone"] == found["recorded"], (folder, found)
