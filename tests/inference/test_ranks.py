"""Every rank's forward against the whole model's, over threads and over processes."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import RankError, run_ranks
from krakenlm.inference.shards import load_rank, write_shards

SMALL = {"n_layer": 3, "n_head": 4, "width": 24, "vocab_size": 96, "block_size": 32}
SIZES = {
    "standard": {"architecture": "standard", **SMALL},
    "parallel": {"architecture": "parallel", **SMALL},
    "ladder": {"architecture": "ladder", **SMALL},
    "kraken-2way": {"architecture": "kraken", "degree": 2, **SMALL},
    "kraken-4way": {"architecture": "kraken", "degree": 4, **SMALL},
}
SIZES["standard-odd-vocabulary"] = {**SIZES["standard"], "vocab_size": 97, "tied": False}
SIZES["kraken-4way-odd-vocabulary"] = {**SIZES["kraken-4way"], "vocab_size": 97}
for name in ("standard", "parallel", "ladder", "kraken-4way"):
    SIZES[f"{name}-bias-untied"] = {**SIZES[name], "bias": True, "tied": False}
CASES = [(name, tp) for name in SIZES for tp in (1, 2, 4) if (name, tp) != ("kraken-2way", 4)]
TOKENS = torch.randint(96, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(tmp_path, request):
    """A model with weights large enough that a wrong one shows, in a folder."""
    torch.manual_seed(0)
    module = models.build(SIZES[request.param])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    models.save_model(module, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("model", "tp"), CASES, indirect=["model"])
@torch.inference_mode()
def test_every_rank_has_the_whole_models_logits(model, tp, tmp_path):
    write_shards(model, tmp_path / "shards", tp)
    whole = models.load_model(model)(TOKENS)
    ranks = run_threads(tp, lambda comm: load_rank(tmp_path / "shards", comm.rank, tp)(TOKENS, comm))
    for logits in ranks:
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "tp"), CASES, indirect=["model"])
def test_prefill_then_decode_gives_the_logits_of_one_pass(model, tp, tmp_path):
    write_shards(model, tmp_path / "shards", tp)
    with torch.inference_mode():
        whole = models.load_model(model)(TOKENS)

    def in_pieces(comm):
        module = load_rank(tmp_path / "shards", comm.rank, tp)
        cache = Cache(module, batch=2, capacity=11)
        pieces = [module(TOKENS[:, a:b], comm, cache) for a, b in ((0, 5), (5, 6), (6, 9), (9, 11))]
        return torch.cat(pieces, dim=1)

    for logits in run_threads(tp, in_pieces):
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["standard", "kraken-4way"], indirect=True)
@torch.inference_mode()
def test_a_forked_cache_continues_each_row_on_its_own(model):
    module = models.load_model(model)
    prefix_BT = TOKENS[:, :6]
    cache = Cache(module, batch=2, capacity=11)
    module(prefix_BT, cache=cache)
    more_BT = torch.arange(2 * 3 * 4).view(6, 4)
    logits = module(more_BT, cache=cache.fork(3))
    whole = module(torch.cat([prefix_BT.repeat_interleave(3, dim=0), more_BT], dim=1))[:, 6:]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
    assert cache.longest == 6


@pytest.mark.parametrize("model", ["parallel", "kraken-2way"], indirect=True)
@torch.inference_mode()
def test_prompts_of_different_lengths_share_a_cache(model):
    module = models.load_model(model)
    cache = Cache(module, batch=2, capacity=12)
    module(TOKENS, cache=cache)
    cache.set_lengths([7, 11])
    logits = module(torch.tensor([[5], [6]]), cache=cache)
    for row, length in enumerate((7, 11)):
        alone = module(torch.cat([TOKENS[row : row + 1, :length], torch.tensor([[5 + row]])], dim=1))[:, -1]
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["kraken-4way"], indirect=True)
@torch.inference_mode()
def test_greedy_tokens_are_those_of_forwards_from_scratch(model):
    module = models.load_model(model)
    tokens = TOKENS[:, :4]
    for token in generate(module, TOKENS[:, :4], 6):
        assert torch.equal(token, module(tokens)[:, -1].argmax(-1))
        tokens = torch.cat([tokens, token[:, None]], dim=1)


@pytest.mark.parametrize(("model", "tp"), [("kraken-4way", 3), ("standard", 3), ("kraken-2way", 4)], indirect=["model"])
def test_a_number_of_ranks_that_does_not_divide_is_refused_with_those_that_do(model, tp, tmp_path):
    with pytest.raises(InputError, match=r"tp: expected a divisor of (n_head|the degree) \(\d: 1, 2"):
        write_shards(model, tmp_path / "shards", tp)
    assert not list(tmp_path.glob("*shards*"))


@pytest.mark.parametrize("model", ["standard"], indirect=True)
def test_shards_of_another_number_of_ranks_and_damaged_shards_are_refused(model, tmp_path):
    write_shards(model, tmp_path / "shards", 2)
    with pytest.raises(InputError, match="expected shards for 4 ranks, found them for 2"):
        load_rank(tmp_path / "shards", 0, 4)
    path = tmp_path / "shards" / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"rank1\.safetensors: expected safetensors, found a damaged file"):
        load_rank(tmp_path / "shards", 1, 2)


def sums(comm, device):
    """Body of a rank in the tests below: an AllReduce that compute runs beside, and an AllGather."""
    x = torch.arange(6.0).view(2, 3) + comm.rank
    pending = comm.all_reduce(x)
    doubled = x * 2
    total = pending.wait()
    assert torch.equal(doubled, x * 2)
    return [total.tolist(), comm.all_gather(x, dim=1).wait().tolist()]


def fail_on_rank_1(comm, device):
    if comm.rank == 1:
        raise ValueError("this rank has had enough")
    comm.all_reduce(torch.zeros(1)).wait()


def wait_for_ever(comm, device, pids):
    Path(pids, str(os.getpid())).touch()
    time.sleep(600)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return Path(__file__).stem


def test_collectives_between_processes_sum_and_gather_and_leave_the_argument_alone(importable):
    total, gathered = run_ranks(f"{importable}:sums", {}, world=2, threads=1)
    assert total == [[1, 3, 5], [7, 9, 11]]
    assert gathered == [[0, 1, 2, 1, 2, 3], [3, 4, 5, 4, 5, 6]]


def test_a_rank_that_raises_ends_the_others_and_its_traceback_is_shown(importable):
    with pytest.raises(RankError, match="this rank has had enough"):
        run_ranks(f"{importable}:fail_on_rank_1", {}, world=2, threads=1)


def test_ranks_end_with_the_process_that_started_them(importable, tmp_path):
    call = f"run_ranks('{importable}:wait_for_ever', {{'pids': '{tmp_path}'}}, world=2, threads=1)"
    parent = subprocess.Popen([os.sys.executable, "-c", f"from krakenlm.inference.launch import run_ranks; {call}"])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = [int(path.name) for path in tmp_path.iterdir()]
    assert len(ranks) == 2
    parent.kill()
    parent.wait()
    while any(running(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(rank) for rank in ranks)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
