"""Shards to engines: `python -m krakenlm.inference.tensorrt.build SHARDS --out ENGINES ...`, where TensorRT-LLM is.

A module entry point, for an environment that has TensorRT-LLM 0.12.0 (Python 3.10) and of this project no more than its
source on PYTHONPATH. One GPU builds the engines of all ranks, one after another.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from krakenlm import models
from krakenlm.errors import InputError
from krakenlm.files import hold, read_json, refuse_other_files, writing_folder
from krakenlm.inference.shards import DTYPES, load_rank
from krakenlm.inference.tensorrt.available import refuse_without_tensorrt_llm
from krakenlm.inference.tensorrt.layout import rank_tensors, refuse_unbuildable
from krakenlm.machine import count_gpus, leased_gpus

if TYPE_CHECKING:
    from tensorrt_llm.models.modeling_utils import PretrainedModel

# Branches of the graph beside the main one: an AllReduce. With one stream Ladder's two AllReduces of a layer, which
# may be under way together, keep their order.
AUXILIARY_STREAMS = 1


@dataclass(frozen=True)
class Limits:
    """The largest input of an engine: `batch` prompts of `prompt` tokens, and `new` tokens behind each."""

    batch: int
    prompt: int
    new: int


def build_engines(shards: str | Path, out: str | Path, dtype: str, limits: Limits) -> None:
    """Build every rank's engine of a folder of shards into the folder `out`, which appears whole or not at all.

    Raises:
        InputError: the shards are damaged, or TensorRT-LLM cannot run them.
    """
    shards = Path(shards)
    refuse_other_files(Path(out), ("config.json", "rank*.engine"))
    described = read_json(shards / "config.json")
    if limits.prompt > described["max_position_embeddings"]:
        raise InputError(
            f"prompt: expected at most the model's block_size ({described['max_position_embeddings']}), found "
            f"{limits.prompt}; lower it"
        )
    with writing_folder(out) as folder:
        for rank in range(described["mapping"]["tp_size"]):
            build_engine(load_model(shards, rank, dtype), limits).save(str(folder))


def load_model(shards: Path, rank: int, dtype: str) -> "PretrainedModel":
    """One rank's TensorRT-LLM model, with its weights, from a folder of shards.

    Raises:
        InputError: the shards are damaged, or TensorRT-LLM cannot run them.
    """
    described = read_json(shards / "config.json")
    tp = described["mapping"]["tp_size"]
    model = empty_model(described, rank, dtype)
    own = load_rank(shards, rank, tp, "cpu", getattr(torch, dtype))
    first = load_rank(shards, 0, tp, "cpu", getattr(torch, dtype)) if rank and own.config.bias else own
    tensors = rank_tensors(own, first.state_dict(), rank, tp)
    model.load({name: tensor.contiguous() for name, tensor in tensors.items()})
    return model


def empty_model(described: dict, rank: int, dtype: str) -> "PretrainedModel":
    """One rank's TensorRT-LLM model, without weights, from what config.json of shards says.

    Raises:
        InputError: TensorRT-LLM cannot run such a model.
    """
    from tensorrt_llm.models import MODEL_MAP
    from tensorrt_llm.models.modeling_utils import PretrainedConfig

    from krakenlm.inference.tensorrt import definitions

    refuse_unbuildable(models.config_from_dict(described["krakenlm"]), described["mapping"]["tp_size"])
    definitions.register()
    pretrained = PretrainedConfig.from_dict(described | {"dtype": dtype})
    pretrained.set_rank(rank)
    return MODEL_MAP[described["architecture"]](pretrained)


def build_engine(model: "PretrainedModel", limits: Limits):
    """The model's engine, with GEMM and attention as plugins, no padding and a contiguous KV cache."""
    import tensorrt_llm
    from tensorrt_llm.plugin import PluginConfig

    plugins = PluginConfig.from_dict(
        {
            "gemm_plugin": "auto",
            "gpt_attention_plugin": "auto",
            "remove_input_padding": True,
            "context_fmha": True,
            # TensorRT-LLM calls the paged one experimental in its Python runtime, which times the engines.
            "paged_kv_cache": False,
        }
    )
    build_config = tensorrt_llm.BuildConfig(
        max_batch_size=limits.batch,
        opt_batch_size=limits.batch,
        max_input_len=limits.prompt,
        max_seq_len=limits.prompt + limits.new,
        max_num_tokens=limits.batch * limits.prompt,
        opt_num_tokens=limits.batch * limits.prompt,
        plugin_config=plugins,
    )
    with auxiliary_streams(AUXILIARY_STREAMS):
        return tensorrt_llm.build(model, build_config)


@contextlib.contextmanager
def auxiliary_streams(count: int) -> Iterator[None]:
    """Have every builder configuration made in this block let TensorRT run branches on `count` more streams.

    `tensorrt_llm.build` makes its configuration itself and has no field for them.
    """
    from tensorrt_llm.builder import Builder

    create = Builder.create_builder_config

    def create_with_streams(self, *positional, **named):
        config = create(self, *positional, **named)
        config.trt_builder_config.max_aux_streams = count
        return config

    Builder.create_builder_config = create_with_streams
    try:
        yield
    finally:
        Builder.create_builder_config = create


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m krakenlm.inference.tensorrt.build", description=__doc__)
    parser.add_argument("shards", type=Path, help="folder of shards (krakenlm shard)")
    parser.add_argument("--out", type=Path, required=True, help="folder of engines to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--batch", type=int, default=1, help="most prompts at once")
    parser.add_argument("--prompt", type=int, default=1024, help="most tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="most new tokens")
    options = parser.parse_args(arguments)
    refuse_without_tensorrt_llm()
    with hold(options.out, "build"), leased_gpus(min(1, count_gpus()), "build"):
        limits = Limits(options.batch, options.prompt, options.new)
        build_engines(options.shards, options.out, options.dtype, limits)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"krakenlm: {error}")
