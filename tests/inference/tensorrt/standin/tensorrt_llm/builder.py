"""Builds: a model's parts put into files, and nothing compiled."""

import json
import os
from dataclasses import dataclass, field

import torch

from .plugin import PluginConfig


class TrtBuilderConfig:
    """TensorRT's own: -1 leaves the number of auxiliary streams to its heuristics."""

    max_aux_streams = -1


class BuilderConfig:
    def __init__(self):
        self.trt_builder_config = TrtBuilderConfig()


class Builder:
    def create_builder_config(
        self,
        precision,
        timing_cache=None,
        tensor_parallel=1,
        use_refit=False,
        int8=False,
        strongly_typed=False,
        opt_level=None,
        force_num_profiles=None,
        profiling_verbosity="layer_names_only",
        use_strip_plan=False,
        weight_streaming=False,
        **kwargs,
    ):
        return BuilderConfig()


@dataclass
class BuildConfig:
    max_input_len: int = 256
    max_seq_len: int = 512
    opt_batch_size: int = 8
    max_batch_size: int = 8
    max_beam_width: int = 1
    max_num_tokens: int | None = None
    opt_num_tokens: int | None = None
    plugin_config: PluginConfig = field(default_factory=PluginConfig)

    def to_dict(self):
        return {**self.__dict__, "plugin_config": self.plugin_config.to_dict()}


class EngineConfig:
    def __init__(self, pretrained_config, build_config, version):
        self.pretrained_config, self.build_config, self.version = pretrained_config, build_config, version

    def to_dict(self):
        return {
            "version": self.version,
            "pretrained_config": self.pretrained_config.to_dict(),
            "build_config": self.build_config.to_dict(),
        }


class Engine:
    def __init__(self, config, engine, managed_weights=None):
        self.config, self.engine = config, engine

    def save(self, engine_dir):
        os.makedirs(engine_dir, exist_ok=True)
        rank = self.config.pretrained_config.mapping.rank
        if rank == 0:
            with open(os.path.join(engine_dir, "config.json"), "w", encoding="utf-8") as f:
                json.dump(self.config.to_dict(), f, indent=4)
        torch.save(self.engine, os.path.join(engine_dir, f"rank{rank}.engine"))


def build(model, build_config, return_build_config=False):
    config = Builder().create_builder_config(precision=model.config.dtype, strongly_typed=False)
    parts = {name: parameter.value.value for name, parameter in model.named_parameters()}
    streams = config.trt_builder_config.max_aux_streams
    return Engine(EngineConfig(model.config, build_config, "0.12.0"), {"weights": parts, "max_aux_streams": streams})
