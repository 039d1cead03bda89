"""Engines made by the stand-in's build, run eagerly."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from .functional import Tensor
from .layers import AttentionParams, KeyValueCacheParams
from .models.modeling_utils import PretrainedConfig


@dataclass
class SamplingConfig:
    end_id: int
    pad_id: int
    max_new_tokens: int = 20
    num_beams: int = 1


class GenerationSession:
    device = torch.device("cpu")

    def __init__(self, model, limits):
        self.model, self.limits = model, limits

    def setup(
        self,
        batch_size,
        max_context_length,
        max_new_tokens,
        beam_width=1,
        max_attention_window_size=None,
        sink_token_length=None,
        encoder_max_input_length=None,
        lora_manager=None,
        lora_uids=None,
        medusa_choices=None,
        multi_block_mode=None,
        enable_context_fmha_fp32_acc=None,
    ):
        assert batch_size <= self.limits["max_batch_size"]
        assert max_context_length + max_new_tokens <= self.limits["max_seq_len"]
        config = self.model.config
        heads, capacity = config.num_attention_heads // config.mapping.tp_size, max_context_length + max_new_tokens
        shape = (batch_size, 2, heads, capacity, config.head_size)
        self.past = [
            Tensor(torch.zeros(shape, dtype=getattr(torch, config.dtype))) for _ in range(config.num_hidden_layers)
        ]
        self.seen, self.max_new_tokens = [0] * batch_size, max_new_tokens

    def step(self, inputs):
        lengths = torch.tensor([len(row) for row in inputs])
        places = [torch.arange(seen, seen + len(row)) for seen, row in zip(self.seen, inputs, strict=True)]
        logits, _, _ = self.model(
            input_ids=Tensor(torch.cat(inputs)),
            position_ids=Tensor(torch.cat(places)),
            use_cache=True,
            last_token_ids=Tensor(lengths.cumsum(0)),
            kv_cache_params=KeyValueCacheParams(
                past_key_value=self.past, host_past_key_value_lengths=Tensor(torch.tensor(self.seen))
            ),
            attention_params=AttentionParams(host_context_lengths=Tensor(lengths)),
        )
        self.seen = [seen + len(row) for seen, row in zip(self.seen, inputs, strict=True)]
        return logits.value

    def decode_batch(self, input_ids, sampling_config, streaming=False, **kwargs):
        assert not any(self.seen), "a decode without a setup before it"
        assert streaming
        assert all(row.dtype == torch.int32 and row.dim() == 1 for row in input_ids)
        return self.decode_stream(list(input_ids))

    def decode_stream(self, rows):
        inputs = rows
        for _ in range(self.max_new_tokens):
            chosen = self.step(inputs)[:, : self.model.config.vocab_size].argmax(-1).int()
            inputs = [token[None] for token in chosen]
            rows = [torch.cat([row, token]) for row, token in zip(rows, inputs, strict=True)]
            yield torch.stack(rows)[:, None]


class ModelRunner:
    def __init__(self, session):
        self.session = session

    @classmethod
    def from_dir(
        cls,
        engine_dir,
        lora_dir=None,
        rank=0,
        debug_mode=False,
        lora_ckpt_source="hf",
        medusa_choices=None,
        stream=None,
        gpu_weights_percent=1,
        enable_context_fmha_fp32_acc=None,
    ):
        models = importlib.import_module("tensorrt_llm.models")
        described = json.loads((Path(engine_dir) / "config.json").read_text())
        config = PretrainedConfig.from_dict(described["pretrained_config"])
        config.set_rank(rank)
        model = models.MODEL_MAP[config.architecture](config)
        model.load(torch.load(Path(engine_dir) / f"rank{rank}.engine")["weights"])
        return cls(GenerationSession(model, described["build_config"]))
