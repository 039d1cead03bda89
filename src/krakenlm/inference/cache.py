"""Keys and values of the tokens that a rank has seen."""

import torch
from torch import Tensor
from torch.nn import functional as F

from krakenlm.errors import InputError
from krakenlm.models.blocks import causal_attention


class Cache:
    """A preallocated KV cache of one rank: keys and values (layers, N * B, H, capacity, K), lengths (B,).

    A Kraken's rank keeps the rows of its N splits side by side. Rows may have different lengths. A layer may attend
    several times before `advance` counts all its tokens at once: a prompt in chunks.
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
        # Of lengths_B, known without asking the device: the largest, and whether all are equal.
        self.longest, self.even = 0, True
        self.ahead = [0] * len(layers)  # tokens that a layer has seen and `advance` has not counted

    def positions(self, length: int) -> Tensor:
        """Places (B, length) of each row's next tokens."""
        if self.longest + length > self.keys.shape[3]:
            raise InputError(
                f"tokens: expected at most {self.keys.shape[3] - self.longest} more (the cache's capacity), found "
                f"{length}; allocate a larger cache"
            )
        return self.lengths_B[:, None] + torch.arange(length, device=self.lengths_B.device)

    def attend(self, layer: int, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor, at_P: Tensor | None = None) -> Tensor:
        """Keep k and v behind each row's tokens; attend causally from q, at `at_P` of T or last, to all of them."""
        length, start = k_LHTK.shape[2], self.longest + self.ahead[layer]
        end = start + length
        if not self.even:
            return self.attend_unevenly(layer, q_LHPK, k_LHTK, v_LHTK, at_P)
        self.ahead[layer] += length
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, start:end], values[:, :, start:end] = k_LHTK, v_LHTK
        at_P = None if at_P is None else start + at_P
        return causal_attention(q_LHPK, keys[:, :, :end], values[:, :, :end], at_P)

    def attend_unevenly(self, layer: int, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor, at_P: Tensor | None):
        """The same where rows have different lengths."""
        queries, length, ahead = q_LHPK.shape[2], k_LHTK.shape[2], self.ahead[layer]
        self.ahead[layer] += length
        keys, values = self.keys[layer], self.values[layer]
        positions_LT = ahead + self.positions(length).repeat(len(k_LHTK) // len(self.lengths_B), 1)
        row_L1 = torch.arange(len(k_LHTK), device=keys.device)[:, None]
        keys[row_L1, :, positions_LT] = k_LHTK.transpose(1, 2)
        values[row_L1, :, positions_LT] = v_LHTK.transpose(1, 2)
        end = self.longest + ahead + length
        positions_LP = positions_LT[:, length - queries :] if at_P is None else positions_LT[:, at_P]
        seen_L1PS = torch.arange(end, device=keys.device) <= positions_LP[:, None, :, None]
        return F.scaled_dot_product_attention(q_LHPK, keys[:, :, :end], values[:, :, :end], attn_mask=seen_L1PS)

    def advance(self, length: int) -> None:
        """Count `length` more tokens in every row."""
        self.lengths_B += length
        self.longest += length
        self.ahead = [0] * len(self.ahead)

    def recount(self, length: int) -> None:
        """Note `length` tokens in every row: the device has counted them, in a forward that was recorded before."""
        self.longest, self.even = length, True
        self.ahead = [0] * len(self.ahead)

    def rewind(self) -> None:
        """Forget every token, keep the room."""
        self.lengths_B.zero_()
        self.longest, self.even = 0, True

    def set_lengths(self, lengths: list[int]) -> None:
        """Forget what lies behind each row's first `lengths` tokens: the padding of prompts of different lengths."""
        if max(lengths) > self.longest or len(lengths) != len(self.lengths_B):
            raise ValueError(f"expected {len(self.lengths_B)} lengths of at most {self.longest}, found {lengths}")
        self.lengths_B.copy_(torch.tensor(lengths))
        self.longest, self.even = max(lengths), len(set(lengths)) == 1

    def fork(self, n: int) -> "Cache":
        """A cache of n * B rows: row b's prefix, n times side by side, for n continuations of its own."""
        fork = object.__new__(Cache)
        splits = self.keys.shape[1] // len(self.lengths_B)
        for name in ("keys", "values"):
            by_split = getattr(self, name).unflatten(1, (splits, -1))
            setattr(fork, name, by_split.repeat_interleave(n, dim=2).flatten(1, 2))
        fork.lengths_B, fork.longest, fork.even = self.lengths_B.repeat_interleave(n), self.longest, self.even
        fork.ahead = [0] * len(self.ahead)
        return fork
