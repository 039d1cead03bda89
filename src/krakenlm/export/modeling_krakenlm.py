"""A model of krakenlm as transformers wants it: loss, cache, padding and generation around the architecture.

This file and those it imports are copied into an exported folder as they are, but for where the imports lead, so what
transformers runs is what was trained. Shapes as in blocks.py; S counts the keys, those of the cache included.
"""

from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache as PastKeyValues
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions
from transformers.modeling_outputs import CausalLMOutputWithPast

from krakenlm.errors import InputError
from krakenlm.models.blocks import causal_attention, initialise

# In an exported folder: the one architecture of its model.
from krakenlm.models.kraken import Kraken as Architecture


class KrakenlmConfig(PreTrainedConfig):
    """The keys of a model's own config.json, under their own names and under those that transformers asks for."""

    model_type = "krakenlm"
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_head",
        "hidden_size": "width",
        "max_position_embeddings": "block_size",
        "tie_word_embeddings": "tied",
    }

    architecture: str
    n_layer: int
    n_head: int  # of all splits together
    width: int  # of the residual stream, of each split
    vocab_size: int
    block_size: int  # longest sequence in tokens
    bias: bool
    tied: bool
    # Of Kraken; the other architectures are one split with a hidden layer of four times the width.
    degree: int = 1
    ffn_expansion: int = 4
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def head_dim(self) -> int:
        """Size of a head, of which a split has n_head / degree."""
        return self.width // (self.n_head // self.degree)


class KrakenlmForCausalLM(PreTrainedModel, GenerationMixin):
    """An architecture with weights, `generate`, and a loss."""

    config_class = KrakenlmConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = [Architecture.__name__]  # of several devices it takes one

    def __init__(self, config: KrakenlmConfig) -> None:
        super().__init__(config)
        sizes = Architecture.Config
        self.model = Architecture(sizes(**{field.name: getattr(config, field.name) for field in fields(sizes)}))
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw what no file gave, as before training."""
        with guard_torch_init_functions():
            initialise(self.model, self.model.config.n_layer, self.model.config.splits)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits (B, P, V) of tokens (B, T) behind those of `past_key_values`.

        Args:
            attention_mask: (B, S), 0 where a token is padding; or (B, 1, T, S), true where a query sees a key.
            position_ids: (B, T) or (1, T); without them, a row's tokens that are no padding count from 0.
            labels: (B, T), the tokens themselves, -100 where none is to be predicted; needs all logits.
            logits_to_keep: this many last positions, or these; 0 for all.

        Raises:
            InputError: tokens, mask or length are not what the model takes.
        """
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        context = Context(self.model, input_ids, past_key_values, attention_mask, position_ids)
        at = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)
        logits_BPV = self.model(input_ids, cache=context, at=at)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BPV, labels=labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BPV, past_key_values=past_key_values)
        return output if return_dict is None or return_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **inputs,
    ) -> dict:
        """What `forward` gets next; prompts have to end where the new tokens begin."""
        prompts = attention_mask if is_first_iteration else None
        if prompts is not None and prompts.dim() == 2 and not prompts[:, -1].all():
            raise InputError(
                "attention_mask: expected prompts that end with a token, found one that ends with padding; pad on the "
                'left (padding_side="left")'
            )
        return super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **inputs
        )


class Context:
    """transformers' cache, mask and positions in the form that an architecture asks for (blocks.Cache).

    transformers repeats, reorders and drops the rows of a cache, so there a row is a sequence, with the heads of all
    splits: (B, N * H, S, K).
    """

    def __init__(
        self,
        model: Architecture,
        tokens_BT: Tensor,
        past: PastKeyValues | None,
        mask: Tensor | None,
        positions_BT: Tensor | None,
    ) -> None:
        self.past, self.positions_BT, self.batch = past, positions_BT, len(tokens_BT)
        length, device = tokens_BT.shape[-1], tokens_BT.device
        self.earlier = int(past.get_seq_length()) if past is not None else 0
        self.end = self.earlier + length
        self.check(model.config.block_size, mask)
        if mask is not None and mask.dim() == 2 and mask.all():
            mask = None
        self.seen_B1TS = None if mask is None else seen(mask, self.earlier)
        if positions_BT is None and (mask is None or mask.dim() == 4):
            self.positions_BT = torch.arange(self.earlier, self.end, device=device)[None]
        elif positions_BT is None:
            self.positions_BT = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, self.earlier :]

    def check(self, block_size: int, mask: Tensor | None) -> None:
        if self.end > block_size:
            raise InputError(
                f"input_ids: expected at most block_size ({block_size}) tokens in a row, padding and the cache's "
                f"{self.earlier} included, found {self.end}; shorten the input or ask for fewer new tokens"
            )
        if mask is not None and mask.dim() != 4 and tuple(mask.shape) != (self.batch, self.end):
            raise InputError(
                f"attention_mask: expected the shape {(self.batch, self.end)}, (batch, tokens with the cache's), found "
                f"{tuple(mask.shape)}; give one for every token"
            )

    def positions(self, length: int) -> Tensor:
        """Places of the tokens, (B, T) or (1, T)."""
        return self.positions_BT

    def attend(self, layer: int, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor, at_P: Tensor | None = None) -> Tensor:
        """Keep k and v, and attend from q, at `at_P` of T or last, to everything kept that is no padding."""
        splits = len(q_LHPK) // self.batch
        # (N * B, H, T, K) to (B, N * H, T, K) and, below, back.
        q, k, v = (x.unflatten(0, (splits, -1)).transpose(0, 1).flatten(1, 2) for x in (q_LHPK, k_LHTK, v_LHTK))
        keys, values = (k, v) if self.past is None else self.past.update(k, v, layer)
        keys, values = keys[:, :, : self.end], values[:, :, : self.end]  # a cache of fixed size has room behind them
        if self.seen_B1TS is None:
            y = causal_attention(q, keys, values, None if at_P is None else self.earlier + at_P)
        else:
            queries = slice(-q.shape[2], None) if at_P is None else at_P
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.seen_B1TS[:, :, queries, : self.end])
        return y.unflatten(1, (splits, -1)).transpose(0, 1).flatten(0, 1)

    def advance(self, length: int) -> None:
        """transformers' cache counts by itself."""


def seen(mask: Tensor, earlier: int) -> Tensor:
    """Which of S keys each query behind the `earlier` tokens sees, (B, 1, T, S): those up to it, without padding."""
    if mask.dim() == 4:
        return mask
    keys_S = torch.arange(mask.shape[1], device=mask.device)
    places_T1 = keys_S[earlier:, None]
    # A query that is padding sees itself: a softmax over nothing is no number.
    return (keys_S <= places_T1) & mask.bool()[:, None, None, :] | (keys_S == places_T1)
