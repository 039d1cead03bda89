"""Every rank's forward against the whole model's, over threads and over processes."""

import pytest
import torch

from krakenlm import models
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.generate import generate
from krakenlm.inference.launch import run_ranks
from krakenlm.inference.shards import load_rank, write_shards
from krakenlm.models.blocks import ALL, LAST

# 24 heads, which 1, 2, 3, 4 and 8 ranks share evenly, and a vocabulary that does not divide by 3.
SMALL = {"n_layer": 2, "n_head": 24, "width": 48, "vocab_size": 128, "block_size": 1024}
DEGREES = (1, 2, 3, 4, 8)
RANKS = (1, 2, 3, 4, 8)
SIZES = {name: {"architecture": name, **SMALL} for name in ("standard", "parallel", "ladder")}
SIZES |= {f"kraken-{degree}way": {"architecture": "kraken", "degree": degree, **SMALL} for degree in DEGREES}
for name in ("standard", "parallel", "ladder", "kraken-2way", "kraken-4way"):
    SIZES[f"{name}-bias-untied"] = {**SIZES[name], "bias": True, "tied": False, "vocab_size": 127}


def divides(sizes: dict, tp: int) -> bool:
    """Whole splits on every rank, or ranks that share the heads of one."""
    degree = sizes.get("degree", 1)
    return degree % tp == 0 or tp % degree == 0


CASES = [
    (name, tp) for name, sizes in SIZES.items() for tp in ((2, 4) if sizes.get("bias") else RANKS) if divides(sizes, tp)
]
TOKENS = torch.randint(96, (2, 11), generator=torch.Generator().manual_seed(1))
LONG_TOKENS = torch.randint(96, (1, 1000), generator=torch.Generator().manual_seed(2))
DECODED = 3


def write_model(name, folder):
    """A model with weights large enough that a wrong one shows."""
    torch.manual_seed(0)
    module = models.build(SIZES[name])
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.2)
    models.save_model(module, folder)
    return folder


@pytest.fixture
def model(tmp_path, request):
    return write_model(request.param, tmp_path / "model")


def prefill_then_decode(module, comm):
    """Logits after prompts of 1, 65 and 997 tokens and of DECODED tokens behind each: of every position, or, after the
    long one, of the last of each step.
    """
    found = []
    for length, at in ((1, ALL), (65, ALL), (997, LAST)):
        cache = Cache(module, batch=1, capacity=length + DECODED)
        steps = [LONG_TOKENS[:, :length], *LONG_TOKENS[:, length : length + DECODED].split(1, dim=1)]
        found.append(torch.cat([module(step, comm, cache, at) for step in steps], dim=1))
    return found


def check_against_the_whole_model(model, found):
    with torch.inference_mode():
        whole = models.load_model(model)(LONG_TOKENS)
    for logits, positions in zip(found, (slice(0, 4), slice(0, 68), slice(996, 1000)), strict=True):
        torch.testing.assert_close(logits, whole[:, positions], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "tp"), CASES, indirect=["model"])
def test_every_rank_has_the_whole_models_logits_in_prefill_and_decode(model, tp, tmp_path):
    write_shards(model, tmp_path / "shards", tp)
    for found in run_threads(tp, lambda comm: prefill_then_decode(load_rank(tmp_path / "shards", comm.rank, tp), comm)):
        check_against_the_whole_model(model, found)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("model", ["standard-bias-untied"], indirect=True)
def test_a_prompt_in_chunks_has_the_same_logits(model, tp, chunks, tmp_path):
    write_shards(model, tmp_path / "shards", tp)

    def in_chunks(comm):
        module = load_rank(tmp_path / "shards", comm.rank, tp)
        module.chunks = chunks
        return prefill_then_decode(module, comm)

    for found in run_threads(tp, in_chunks):
        check_against_the_whole_model(model, found)


def save_logits(comm, device, folders):
    """Body of a rank: what each engine says, in files."""
    for folder in folders:
        torch.save(
            prefill_then_decode(load_rank(folder, comm.rank, comm.world), comm), f"{folder}/logits{comm.rank}.pt"
        )


def test_every_process_has_the_whole_models_logits_in_prefill_and_decode(importable, tmp_path):
    names = ["standard", "parallel", "ladder", "kraken-2way", "kraken-4way", "kraken-8way"]
    for name in names:
        write_shards(write_model(name, tmp_path / name), tmp_path / f"{name}-shards", 4)
    run_ranks(f"{importable}:save_logits", {"folders": [f"{tmp_path}/{name}-shards" for name in names]}, 4, threads=1)
    for name in names:
        for rank in range(4):
            found = torch.load(tmp_path / f"{name}-shards" / f"logits{rank}.pt", weights_only=True)
            check_against_the_whole_model(tmp_path / name, found)


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


@pytest.mark.parametrize("at", [ALL, LAST, slice(1, 3), torch.tensor([3, 0])])
@pytest.mark.parametrize("model", ["parallel", "kraken-2way"], indirect=True)
@torch.inference_mode()
def test_positions_can_be_asked_for_behind_prefixes_of_different_lengths(model, at):
    module = models.load_model(model)
    more_BT = torch.arange(8).view(2, 4)
    for lengths in ([7, 11], [11, 11]):
        cache = Cache(module, batch=2, capacity=16)
        module(TOKENS, cache=cache)
        cache.set_lengths(lengths)
        logits = module(more_BT, cache=cache, at=at)
        for row, length in enumerate(lengths):
            alone = module(torch.cat([TOKENS[row : row + 1, :length], more_BT[row : row + 1]], dim=1))[:, length:]
            torch.testing.assert_close(logits[row : row + 1], alone[:, at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["kraken-4way"], indirect=True)
@torch.inference_mode()
def test_greedy_tokens_are_those_of_forwards_from_scratch(model):
    module = models.load_model(model)
    tokens = TOKENS[:, :4]
    for token in generate(module, TOKENS[:, :4], 6):
        assert torch.equal(token, module(tokens)[:, -1].argmax(-1))
        tokens = torch.cat([tokens, token[:, None]], dim=1)
