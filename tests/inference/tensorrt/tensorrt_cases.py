"""Models and prompts for the tests beside this file, and the stand-in fed as TensorRT-LLM's runtime feeds an engine."""

import torch

from krakenlm import models

SMALL = {"n_layer": 3, "n_head": 4, "width": 24, "vocab_size": 96, "block_size": 32}
SIZES = {
    "standard": {"architecture": "standard", **SMALL},
    "parallel": {"architecture": "parallel", **SMALL},
    "ladder": {"architecture": "ladder", **SMALL},
    "kraken-2way": {"architecture": "kraken", "degree": 2, **SMALL},
    "kraken-4way": {"architecture": "kraken", "degree": 4, "ffn_expansion": 3, **SMALL},
}
SIZES |= {f"{name}-bias-untied": {**sizes, "bias": True, "tied": False} for name, sizes in SIZES.items()}
SIZES["ladder-odd-vocabulary"] = {**SIZES["ladder"], "vocab_size": 97}
SIZES["kraken-4way-odd-vocabulary"] = {**SIZES["kraken-4way"], "vocab_size": 97}


def write_model(folder, sizes):
    """A model with weights large enough that a wrong one shows, in a folder."""
    torch.manual_seed(0)
    module = models.build(sizes)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    models.save_model(module, folder)
    return module


class Session:
    """One rank's stand-in model with a KV cache, fed rows without padding, as TensorRT-LLM's runtime does."""

    def __init__(self, model, batch, capacity):
        from tensorrt_llm.functional import Tensor

        config = model.config
        heads = config.num_attention_heads // config.mapping.tp_size
        shape = (batch, 2, heads, capacity, config.head_size)
        self.model, self.seen = model, [0] * batch
        self.past = [Tensor(torch.zeros(shape)) for _ in range(config.num_hidden_layers)]

    def logits(self, inputs):
        """The last logits (B, V) of each row's new tokens."""
        from tensorrt_llm.functional import Tensor
        from tensorrt_llm.layers import AttentionParams, KeyValueCacheParams

        lengths = torch.tensor([len(row) for row in inputs])
        places = [torch.arange(seen, seen + len(row)) for seen, row in zip(self.seen, inputs, strict=True)]
        logits, _, _ = self.model(
            input_ids=Tensor(torch.tensor([token for row in inputs for token in row])),
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
