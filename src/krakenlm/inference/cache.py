"""Keys and values of the tokens that a rank has seen."""

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm.errors import InputError
from krakenlm.models.blocks import causal_attention


class Cache:
    """A preallocated KV cache of one rank: keys and values (layers, N * B, H, capacity, K), lengths (B,).

    A Kraken's rank keeps the rows of its N splits side by side. Rows may have different lengths.
    """

    def __init__(self, module: torch.nn.Module, batch: int, capacity: int) -> None:
        """Room for `capacity` tokens in each of `batch` rows of this rank's `module`.

        Raises:
            InputError: capacity is beyond the model's block_size.
        """
        config, layers = module.config, module.layers
        if capacity > config.block_size:
            raise InputError(
                f"capacity: expected at most the model's block_size ({config.block_size}), found {capacity}; lower it"
            )
        rows, heads = batch * module.splits, module.heads
        table = module.embedding.tokens
        shape = (len(layers), rows, heads, capacity, config.head_size)
        self.keys, self.values = (torch.zeros(shape, dtype=table.dtype, device=table.device) for _ in range(2))
        self.lengths_B = torch.zeros(batch, dtype=torch.int64, device=table.device)
        self.longest = 0  # of lengths_B, known without asking the device

    def positions(self, length: int) -> Tensor:
        """Places (B, length) of each row's next tokens."""
        if self.longest + length > self.keys.shape[3]:
            raise InputError(
                f"tokens: expected at most {self.keys.shape[3] - self.longest} more (the cache's capacity), found "
                f"{length}; allocate a larger cache"
            )
        return self.lengths_B[:, None] + torch.arange(length, device=self.lengths_B.device)

    def attend(self, layer: int, q_LHTK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor) -> Tensor:
        """Keep k and v behind each row's tokens; attend causally from q to all of them."""
        length = q_LHTK.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        if self.longest == 0:
            keys[:, :, :length], values[:, :, :length] = k_LHTK, v_LHTK
            return causal_attention(q_LHTK, k_LHTK, v_LHTK)
        rows = len(q_LHTK) // len(self.lengths_B)
        positions_LT = self.positions(length).repeat(rows, 1)
        row_L1 = torch.arange(len(q_LHTK), device=keys.device)[:, None]
        keys[row_L1, :, positions_LT] = k_LHTK.transpose(1, 2)
        values[row_L1, :, positions_LT] = v_LHTK.transpose(1, 2)
        end = self.longest + length
        seen_L1TS = torch.arange(end, device=keys.device) <= positions_LT[:, None, :, None]
        return F.scaled_dot_product_attention(q_LHTK, keys[:, :, :end], values[:, :, :end], attn_mask=seen_L1TS)

    def advance(self, length: int) -> None:
        """Count `length` more tokens in every row."""
        self.lengths_B = self.lengths_B + length
        self.longest += length

    def rewind(self) -> None:
        """Forget every token, keep the room."""
        self.lengths_B = torch.zeros_like(self.lengths_B)
        self.longest = 0

    def set_lengths(self, lengths: list[int]) -> None:
        """Forget what lies behind each row's first `lengths` tokens: the padding of prompts of different lengths."""
        if max(lengths) > self.longest or len(lengths) != len(self.lengths_B):
            raise ValueError(f"expected {len(self.lengths_B)} lengths of at most {self.longest}, found {lengths}")
        self.lengths_B = torch.tensor(lengths, device=self.lengths_B.device)
        self.longest = max(lengths)

    def fork(self, n: int) -> "Cache":
        """A cache of n * B rows: row b's prefix, n times side by side, for n continuations of its own."""
        fork = object.__new__(Cache)
        splits = self.keys.shape[1] // len(self.lengths_B)
        for name in ("keys", "values"):
            by_split = getattr(self, name).unflatten(1, (splits, -1))
            setattr(fork, name, by_split.repeat_interleave(n, dim=2).flatten(1, 2))
        fork.lengths_B, fork.longest = self.lengths_B.repeat_interleave(n), self.longest
        return fork
