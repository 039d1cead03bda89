"""A model's weights as one file per rank: what is written, what is stripped, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.inference.cache import Cache
from krakenlm.inference.collectives import run_threads
from krakenlm.inference.shards import (
    check_shards,
    cut_rank,
    empty_rank,
    load_rank,
    padded_head_size,
    write_random_shards,
    write_shards,
)
from krakenlm.models.sizing import SHAPES, rank_parameter_count, sizes_of

SMALL = {"n_layer": 2, "n_head": 4, "width": 24, "vocab_size": 96, "block_size": 32}
SIZES = {name: {"architecture": name, **SMALL} for name in ("standard", "parallel", "ladder")}
SIZES["kraken"] = {"architecture": "kraken", "degree": 2, **SMALL}
SIZES |= {f"{name}-bias-untied": {**sizes, "bias": True, "tied": False} for name, sizes in SIZES.items()}


def write_model(folder, sizes, seed=0):
    torch.manual_seed(seed)
    models.save_model(models.build(sizes), folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    """Shards of a Kraken for two ranks."""
    write_shards(write_model(tmp_path / "model", SIZES["kraken"]), tmp_path / "shards", 2)
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("true", "padded"),
    [(113, 128), (168, 192), (209, 256), (111, 128), (161, 192), (240, 256), (64, 64), (21, 32), (300, 300)],
)
def test_heads_are_padded_to_the_next_size_that_both_kernels_take(true, padded):
    assert padded_head_size(true) == padded


@pytest.mark.parametrize("name", SIZES)
def test_padding_lies_in_zeros_behind_every_head_and_q_scaling_takes_it_back(name, tmp_path):
    write_shards(write_model(tmp_path / "model", SIZES[name]), tmp_path / "shards", 2)
    described = json.loads((tmp_path / "shards" / "config.json").read_text())
    true, padded = models.load_config(tmp_path / "model").head_size, described["head_size"]
    assert (true, padded) == ((12, 32) if "kraken" in name else (6, 32))
    assert described["q_scaling"] * padded**0.5 == pytest.approx(true**0.5)
    tensors = load_file(tmp_path / "shards" / "rank1.safetensors")
    key = "layers.0.qkv_up.weight" if "parallel" in name else "layers.0.attention.qkv.weight"
    heads = 3 * 2
    rows = tensors[key].flatten(0, -2)[: heads * padded].unflatten(0, (heads, padded))
    assert (rows[:, :true] != 0).any(dim=-1).all()
    assert (rows[:, true:] == 0).all()
    assert {key: tensor.shape for key, tensor in load_rank(tmp_path / "shards", 1, 2).state_dict().items()} == {
        key: tensor.shape for key, tensor in empty_rank(models.config_from_dict(SIZES[name]), 1, 2).state_dict().items()
    }


@pytest.mark.parametrize(
    ("sizes", "tp", "works"),
    [
        (SIZES["kraken"] | {"degree": 4}, 3, "1, 2, 4; found 3"),
        (SIZES["standard"], 3, "1, 2, 4\\), found 3"),
        (SIZES["kraken"], 3, "1, 2, 4; found 3"),
        (SIZES["kraken"], 8, "1, 2, 4; found 8"),
    ],
)
def test_a_number_of_ranks_that_does_not_divide_is_refused_with_those_that_do(sizes, tp, works, tmp_path):
    with pytest.raises(InputError, match=rf"tp: expected a divisor of .*{works}"):
        write_shards(write_model(tmp_path / "model", sizes), tmp_path / "shards", tp)
    assert not list(tmp_path.glob("*shards*"))


def test_shards_of_another_number_of_ranks_are_refused(shards):
    with pytest.raises(InputError, match="expected shards for 4 ranks, found them for 2"):
        load_rank(shards, 0, 4)


def test_damaged_and_missing_shards_are_refused(shards):
    path = shards / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    for load in (lambda: load_rank(shards, 1, 2), lambda: check_shards(shards, 2)):
        with pytest.raises(InputError, match=r"rank1\.safetensors: expected safetensors, found a damaged file"):
            load()
    path.unlink()
    for load in (lambda: load_rank(shards, 1, 2), lambda: check_shards(shards, 2)):
        with pytest.raises(InputError, match=r"rank1\.safetensors: expected weights, found none"):
            load()


def test_a_shard_of_another_model_is_refused_even_where_the_shapes_are_equal(shards, tmp_path):
    write_shards(write_model(tmp_path / "other", SIZES["kraken"], seed=1), tmp_path / "others", 2)
    shutil.copy(tmp_path / "others" / "rank1.safetensors", shards)
    load_rank(shards, 0, 2)
    with pytest.raises(InputError, match=r"rank1\.safetensors: expected a shard of model"):
        check_shards(shards, 2)
    with pytest.raises(InputError, match=r"rank1\.safetensors: expected a shard of model \w+ \(config\.json\), found"):
        load_rank(shards, 1, 2)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_weights_of_another_model_are_refused_before_one_is_cut(architecture, tmp_path):
    write_model(tmp_path / "model", SIZES[architecture])
    for name, sizes in SIZES.items():
        # Ladder has standard's tensors: only config.json tells them apart.
        if {name, architecture} <= {"standard", "ladder"} or name == architecture:
            continue
        write_model(tmp_path / "other", sizes)
        shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "model")
        for cut in (
            lambda: write_shards(tmp_path / "model", tmp_path / "shards", 2),
            lambda: cut_rank(tmp_path / "model", 1, 2),
        ):
            with pytest.raises(InputError, match=f"model: expected the weights of the {architecture} in config.json"):
                cut()
    assert not (tmp_path / "shards").exists()


def test_shards_of_one_model_have_the_same_bytes_each_time(tmp_path):
    model = write_model(tmp_path / "model", SIZES["kraken"])
    written = set()
    for time in range(8):
        write_shards(model, tmp_path / f"shards{time}", 2)
        written.add(b"".join(path.read_bytes() for path in sorted((tmp_path / f"shards{time}").iterdir())))
    assert len(written) == 1


def test_a_shard_in_another_ranks_place_is_refused(shards):
    shutil.copy(shards / "rank0.safetensors", shards / "rank1.safetensors")
    with pytest.raises(InputError, match=r"rank1\.safetensors: expected rank 1, found rank 0"):
        load_rank(shards, 1, 2)


def test_random_shards_hold_no_weights_and_every_rank_draws_the_same_model_again(tmp_path):
    config = models.config_from_dict(SIZES["kraken-bias-untied"])
    write_random_shards(config, tmp_path / "shards", 2, seed=3)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["config.json"]
    tokens_BT = torch.arange(8)[None]

    def logits(comm):
        return load_rank(tmp_path / "shards", comm.rank, 2)(tokens_BT, comm)

    first, second = run_threads(2, logits)
    assert torch.equal(first, second)
    assert torch.equal(run_threads(2, logits)[0], first)
    ranks = [load_rank(tmp_path / "shards", rank, 2).state_dict() for rank in range(2)]
    for name in ("embedding.tokens", "embedding.positions"):
        assert torch.equal(ranks[0][name], ranks[1][name])
    assert not torch.equal(ranks[0]["layers.0.mlp.up.weight"], ranks[1]["layers.0.mlp.up.weight"])


def test_random_shards_of_65b_are_written_at_once(tmp_path):
    shape = SHAPES["65b"]
    sizes = shape | sizes_of("kraken", shape["width"], shape["n_head"], 8)
    config = models.config_from_dict({"vocab_size": 50304, "block_size": 2048} | sizes)
    write_random_shards(config, tmp_path / "shards", 8, seed=0)
    assert (tmp_path / "shards" / "config.json").is_file()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_parameters_of_a_rank_are_counted_without_building(name, tp):
    sizes = SIZES[name] | {"vocab_size": 97}
    rank = empty_rank(models.config_from_dict(sizes), 0, tp)
    assert rank_parameter_count(sizes, tp) == sum(parameter.numel() for parameter in rank.parameters())


@pytest.mark.parametrize("name", ["standard", "kraken-bias-untied"])
def test_an_engine_of_bfloat16_weights_computes_in_bfloat16_near_the_float32_model(name, tmp_path):
    write_model(tmp_path / "model", SIZES[name])
    write_shards(tmp_path / "model", tmp_path / "shards", 2, "bfloat16")
    assert json.loads((tmp_path / "shards" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {each.dtype for each in load_file(tmp_path / "shards" / "rank0.safetensors").values()} == {torch.bfloat16}
    tokens_BT = torch.arange(20)[None]

    def logits(comm):
        module = load_rank(tmp_path / "shards", comm.rank, 2)
        cache = Cache(module, 1, 20)
        return torch.cat([module(tokens_BT[:, :19], comm, cache), module(tokens_BT[:, 19:], comm, cache)], dim=1)

    [found, other] = run_threads(2, logits)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, other)
    with torch.inference_mode():
        whole = models.load_model(tmp_path / "model")(tokens_BT)
    # Eight bits of mantissa: relative to what logits spread over, a few of their last digits.
    assert (found.float() - whole).abs().max() < 0.05 * whole.abs().max()


def test_random_shards_are_drawn_in_their_own_dtype(tmp_path):
    write_random_shards(models.config_from_dict(SIZES["kraken"]), tmp_path / "shards", 2, seed=3, dtype="bfloat16")
    assert {each.dtype for each in load_rank(tmp_path / "shards", 0, 2).parameters()} == {torch.bfloat16}
    assert {each.dtype for each in load_rank(tmp_path / "shards", 0, 2, dtype=torch.float32).parameters()} == {
        torch.float32
    }


def test_a_dtype_that_no_engine_computes_in_is_refused(tmp_path):
    with pytest.raises(InputError, match="dtype: expected one of float32, float16, bfloat16, found int8"):
        write_shards(write_model(tmp_path / "model", SIZES["kraken"]), tmp_path / "shards", 2, "int8")
    assert not list(tmp_path.glob("*shards*"))


def test_shards_are_no_model_folder(shards):
    with pytest.raises(InputError, match="shards: expected a model folder, found the shards of one; name the model"):
        models.load_config(shards)


@pytest.mark.parametrize("held", ["thesis.tex", "model.safetensors"])
def test_a_folder_that_holds_anything_but_shards_is_not_replaced(held, shards, tmp_path):
    (shards / held).write_text("mine")
    with pytest.raises(InputError, match=f"found {held}; choose another folder"):
        write_shards(tmp_path / "model", shards, 2)
    with pytest.raises(InputError, match=f"found {held}; choose another folder"):
        write_random_shards(models.config_from_dict(SIZES["kraken"]), shards, 2, seed=0)
    assert (shards / held).read_text() == "mine"


def test_a_file_in_the_place_of_shards_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="expected a folder, or nothing yet, found a file"):
        write_shards(write_model(tmp_path / "model", SIZES["kraken"]), tmp_path / "notes", 2)
    assert (tmp_path / "notes").read_text() == "mine"
