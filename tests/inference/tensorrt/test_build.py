"""From shards to engines: what config.json says, which weights go where, what is left of a build that fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorrt_cases import SIZES, SMALL, Session, write_model
from test_signatures import RECORD

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.inference.shards import checkpoint_config, empty_rank, write_random_shards, write_shards
from krakenlm.inference.tensorrt import build
from krakenlm.inference.tensorrt.layout import rank_tensors

ROOT = Path(__file__).parents[3]
STANDIN = Path(__file__).parent / "standin"
PAPER = yaml.safe_load((ROOT / "config" / "scales" / "paper.yaml").read_text())
TRAINED = {
    name: {"vocab_size": 50304, "block_size": PAPER["block_size"]}
    | {key: value for key, value in model.items() if key != "training"}
    for name, model in PAPER["models"].items()
}
KRAKENS = [name for name in TRAINED if name.startswith("kraken")]
LIMITS = build.Limits(batch=2, prompt=16, new=4)


def shards_of(folder, sizes, tp):
    write_model(folder / "model", sizes)
    write_shards(folder / "model", folder / "shards", tp)
    return folder / "shards"


def names_of(signature):
    return {part.partition("=")[0].strip() for part in RECORD["signatures"][signature]["parameters"].split(",")}


@pytest.mark.parametrize("name", SIZES)
def test_every_field_of_config_json_is_one_that_the_models_configuration_reads(standin, name):
    from krakenlm.inference.tensorrt.definitions import Config

    config = models.config_from_dict(SIZES[name])
    described = checkpoint_config(config, 2)
    read = names_of("models.modeling_utils.PretrainedConfig.__init__")
    own = names_of("models.gpt.GPTConfig.__init__") if name.startswith("standard") else {"q_scaling", "bias", "degree"}
    assert described.keys() - {"krakenlm"} <= read | own
    # The rest has the defaults that these models mean.
    assert read - described.keys() - {"self", "*", "**kwargs"} == {
        "quantization", "use_parallel_embedding", "embedding_sharding_dim", "share_embedding_table", "qk_layernorm"
    }  # fmt: skip
    found = build.empty_model(described, 0, "float16").config
    assert (found.hidden_size, found.num_attention_heads, found.num_key_value_heads) == (24, 4, 4)
    assert found.head_size * found.q_scaling**2 == pytest.approx(config.head_size)
    assert found.norm_epsilon == 1e-5
    assert found.intermediate_size == {1: 96, 2: 48, 4: 72}[config.splits]
    assert isinstance(found, Config) == (not name.startswith("standard"))
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()


@pytest.mark.parametrize("name", TRAINED)
def test_every_tensor_of_a_trained_configuration_has_the_name_and_shape_that_the_layers_create(standin, name):
    config = models.config_from_dict(TRAINED[name])
    for tp in (config.splits, 1):
        described = checkpoint_config(config, tp)
        for rank in range(tp):
            module = empty_rank(config, rank, tp)
            tensors = rank_tensors(module, module.state_dict(), rank, tp)
            created = dict(build.empty_model(described, rank, "float16").named_parameters())
            assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
                key: parameter.shape for key, parameter in created.items()
            }


@pytest.mark.parametrize("name", KRAKENS)
def test_a_trained_krakens_widths_give_the_pytorch_engines_logits_on_every_rank(on_ranks, name):
    sizes = TRAINED[name] | {"n_layer": 2, "vocab_size": 96, "block_size": 16}
    prompt = torch.arange(16)[None] * 5 % 96
    whole, ranks = on_ranks(sizes, sizes["degree"], lambda model, record: Session(model, 1, 16).logits(prompt.tolist()))
    with torch.inference_mode():
        expected = whole(prompt)[:, -1]
    assert len(ranks) == sizes["degree"]
    for logits in ranks:
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_engines_of_every_rank_are_built_with_auxiliary_streams(standin, tmp_path):
    from tensorrt_llm.builder import Builder

    create = Builder.create_builder_config
    build.build_engines(shards_of(tmp_path, SIZES["kraken-2way"], 2), tmp_path / "engines", "float16", LIMITS)
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == [
        "config.json", "rank0.engine", "rank1.engine"
    ]  # fmt: skip
    for rank in range(2):
        assert torch.load(tmp_path / "engines" / f"rank{rank}.engine")["max_aux_streams"] == 1
    assert Builder.create_builder_config is create
    described = json.loads((tmp_path / "engines" / "config.json").read_text())
    assert described["pretrained_config"]["dtype"] == "float16"
    assert described["build_config"]["max_seq_len"] == 20
    assert described["build_config"]["plugin_config"]["gemm_plugin"] == "auto"


def test_weights_can_be_drawn_at_the_build(standin, tmp_path):
    write_random_shards(models.config_from_dict(SIZES["kraken-2way"]), tmp_path / "shards", 2, seed=3)
    build.build_engines(tmp_path / "shards", tmp_path / "engines", "bfloat16", LIMITS)
    tensors = torch.load(tmp_path / "engines" / "rank1.engine")["weights"]
    assert tensors["transformer.layers.0.splits.0.mlp.fc.weight"].std().item() == pytest.approx(0.02, rel=0.2)


def test_a_build_that_fails_leaves_no_engine_and_keeps_the_one_before(standin, tmp_path, monkeypatch):
    shards, out = shards_of(tmp_path, SIZES["kraken-2way"], 2), tmp_path / "out" / "engines"

    def fail_on_rank_1(model, limits):
        if model.config.mapping.rank == 1:
            raise RuntimeError("Engine building failed")
        return real(model, limits)

    real = build.build_engine
    monkeypatch.setattr(build, "build_engine", fail_on_rank_1)
    with pytest.raises(RuntimeError, match="Engine building failed"):
        build.build_engines(shards, out, "float16", LIMITS)
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(build, "build_engine", real)
    build.build_engines(shards, out, "float16", LIMITS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(build, "build_engine", fail_on_rank_1)
    with pytest.raises(RuntimeError, match="Engine building failed"):
        build.build_engines(shards, out, "float16", LIMITS)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def run_build(*arguments, standin=True):
    path = [str(ROOT / "src"), str(STANDIN)][: 2 if standin else 1]
    return subprocess.run(
        [sys.executable, "-m", "krakenlm.inference.tensorrt.build", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )


def test_the_entry_point_builds_after_a_killed_one_and_removes_what_that_left(tmp_path):
    shards = shards_of(tmp_path, {**SMALL, "architecture": "ladder"}, 2)
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from krakenlm.files import writing_folder\n"
            "with writing_folder(sys.argv[1]) as folder:\n"
            "    (folder / 'rank0.engine').write_text('half'); os.kill(os.getpid(), 9)",
            str(tmp_path / "out" / "engines"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "engines").exists()
    assert len(list((tmp_path / "out").iterdir())) == 1
    built = run_build(shards, "--out", tmp_path / "out" / "engines", "--prompt", 16, "--new", 4)
    assert built.returncode == 0, built.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"engines"}


def test_without_tensorrt_llm_the_entry_point_says_so_in_one_line(tmp_path):
    run = run_build(tmp_path / "shards", "--out", tmp_path / "engines", standin=False)
    assert run.returncode == 1
    assert run.stderr.startswith("krakenlm: engine: expected tensorrt_llm 0.12.0 in this Python")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("sizes", "tp", "message"),
    [
        ({**SIZES["kraken-2way"]}, 4, r"tp: expected a divisor of the degree \(2: 1, 2\) for TensorRT-LLM"),
        ({**SIZES["standard"], "n_head": 1, "width": 300}, 1, "head size: expected at most 256"),
    ],
)
def test_what_tensorrt_llm_cannot_run_is_refused_with_what_works(standin, tmp_path, sizes, tp, message):
    write_random_shards(models.config_from_dict(sizes), tmp_path / "shards", tp, seed=0)
    with pytest.raises(InputError, match=message):
        build.build_engines(tmp_path / "shards", tmp_path / "engines", "float16", LIMITS)
    assert not (tmp_path / "engines").exists()


def test_a_prompt_beyond_the_models_positions_is_refused(standin, tmp_path):
    shards = shards_of(tmp_path, SIZES["standard"], 1)
    with pytest.raises(InputError, match=r"prompt: expected at most the model's block_size \(32\), found 33"):
        build.build_engines(shards, tmp_path / "engines", "float16", build.Limits(1, 33, 1))


def test_a_missing_shard_is_refused(standin, tmp_path):
    shards = shards_of(tmp_path, SIZES["standard"], 2)
    (shards / "rank1.safetensors").unlink()
    with pytest.raises(InputError, match=r"rank1\.safetensors: expected weights, found none"):
        build.build_engines(shards, tmp_path / "engines", "float16", LIMITS)
    shutil.rmtree(shards)
    with pytest.raises(InputError, match="expected a JSON file, found none"):
        build.build_engines(shards, tmp_path / "engines", "float16", LIMITS)
