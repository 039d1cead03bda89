"""What the architectures share: they differ in how these parts are wired.

Shapes: B batch, T time, D width, E width of a product's result, H heads, K head size, N splits, V vocabulary, L every
leading dimension. A block with `splits` holds N sets of weights and works on x_NBTD in one batched product; without,
it is an ordinary layer on x_BTD.
"""

import functools
import importlib
import math
import os
import shutil
import sysconfig
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.errors import InputError
from krakenlm.models.products import HEAD, Linear, product, wider

LAYER_NORM_EPS = 1e-5
INITIAL_STD = 0.02
CPU_QUERIES = 64
# Numbers from which on a norm of splits is one kernel: it moves fewer bytes, but probably takes the host longer than
# the operations that it stands for. Where one outweighs the other is a guess (docs/benchmarks.md, one H100).
FUSED = 2**22
# Positions whose logits are wanted. Nothing that these do not need is computed in a model's last layer: all of its keys
# and values, but queries, and whatever follows attention, at these positions alone.
LAST, ALL = slice(-1, None), slice(None)


class Cache(Protocol):
    """Keys and values of earlier tokens (krakenlm.inference.cache)."""

    def positions(self, length: int) -> Tensor:
        """Places of the next `length` tokens of every row, (B, T) int64."""

    def attend(self, layer: int, q_LHPK: Tensor, k_LHTK: Tensor, v_LHTK: Tensor, at_P: Tensor | None = None) -> Tensor:
        """Keep k and v, and attend from q, which stand at `at_P` of the T inputs, or last, to everything kept."""

    def advance(self, length: int) -> None:
        """Count `length` more tokens in every row, once all layers have seen them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes that every architecture has. Checked when made; JSON round trip through `to_dict`.

    Raises:
        InputError: naming the key.
    """

    n_layer: int
    n_head: int  # of all splits together
    width: int  # of the residual stream, of each split
    vocab_size: int
    block_size: int  # longest input in tokens
    bias: bool = False  # in linear layers and LayerNorms
    tied: bool = True  # the head is the token embedding

    architecture: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("bias", "tied"):
                if type(value) is not bool:
                    raise InputError(f"{field.name}: expected true or false, found {value!r}; correct it")
            elif type(value) is not int or value < 1:
                raise InputError(f"{field.name}: expected a whole number of at least 1, found {value!r}; correct it")
        if self.n_head % self.splits:
            raise InputError(
                f"n_head: expected a multiple of the degree ({self.splits}), found {self.n_head}; change one of the two"
            )
        if self.width % self.heads_per_split:
            raise InputError(
                f"width: expected a multiple of the {self.heads_per_split} heads of a split, found {self.width}; "
                "change one of the two"
            )

    @property
    def splits(self) -> int:
        return 1

    @property
    def heads_per_split(self) -> int:
        return self.n_head // self.splits

    @property
    def head_size(self) -> int:
        return self.width // self.heads_per_split

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **asdict(self)}


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, with one weight (and bias) or one per split. weight, bias: (D,) or (N, D)."""

    def __init__(self, width: int, splits: int | None = None, bias: bool = False) -> None:
        super().__init__()
        shape = (width,) if splits is None else (splits, width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight.dim() == 2 and len(weight) == 1:
            weight, bias = weight[0], None if bias is None else bias[0]
        if weight.dim() == 1:
            return F.layer_norm(x, x.shape[-1:], weight, bias, eps=LAYER_NORM_EPS)
        eager_training = x.device.type == "cuda" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernels = fused_norm() if eager_training and x.numel() >= FUSED else None
        if kernels is not None and x.dtype in kernels.DTYPES:
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
            return kernels.split_layer_norm(x, weight, bias, LAYER_NORM_EPS, dtype)
        y = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) * per_split(weight, x)
        return y if bias is None else y + per_split(bias, x)


@functools.cache
def fused_norm() -> ModuleType | None:
    """krakenlm.models.fused_norm where it can be had.

    Not without Triton, which compiles with a C compiler and Python's headers, nor where a model was exported to alone.
    """
    compiler = os.environ.get("CC")  # as Triton looks for one: whatever it is, where it is set
    if compiler is None:
        compiler = shutil.which("gcc") or shutil.which("clang") or ""
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        return None
    try:
        return importlib.import_module("krakenlm.models.fused_norm")
    except ModuleNotFoundError:
        return None


def per_split(parameter_ND: Tensor, x: Tensor) -> Tensor:
    """A parameter of every split, shaped to meet x_N..D."""
    return parameter_ND.view(len(parameter_ND), *[1] * (x.dim() - 2), -1)


def split_heads(x: Tensor, heads: int, head_size: int) -> Tensor:
    """(L, T, H * K) to (prod L, H, T, K), as attention wants it."""
    return x.unflatten(-1, (heads, head_size)).transpose(-3, -2).flatten(0, -4)


def is_all(at: slice | Tensor | None) -> bool:
    """Whether `at` is ALL. Compilers tell neither the identity of slices nor their equality."""
    return isinstance(at, slice) and at.start is None and at.stop is None and at.step is None


def wanted(at: slice | Tensor, length: int) -> slice | Tensor:
    """`at`, or ALL itself where it names every one of `length` positions in order."""
    if not isinstance(at, slice) or is_all(at):
        return at
    return ALL if at.indices(length) == (0, length, 1) else at


def places(at: slice | Tensor, length: int, device: torch.device) -> Tensor | None:
    """`at` as positions (P,) of `length`, or None where they are the last ones in order."""
    if is_all(at):
        return None
    if not isinstance(at, slice):
        return at % length
    start, stop, step = at.indices(length)
    return None if (stop, step) == (length, 1) else torch.arange(start, stop, step, device=device)


def causal_attention(
    q_LHPK: Tensor, k_LHSK: Tensor, v_LHSK: Tensor, at_P: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention from the positions `at_P` of S, or from the last P, each to itself and to those before it.

    Args:
        scale: of the products of q and k; by default 1 / sqrt(K).
    """
    queries, keys = q_LHPK.shape[2], k_LHSK.shape[2]
    if at_P is not None:
        seen_PS = torch.arange(keys, device=at_P.device) <= at_P[:, None]
        return F.scaled_dot_product_attention(q_LHPK, k_LHSK, v_LHSK, attn_mask=seen_PS, scale=scale)
    if queries == 1:
        return F.scaled_dot_product_attention(q_LHPK, k_LHSK, v_LHSK, scale=scale)
    if q_LHPK.device.type == "cpu" and not torch.is_grad_enabled() and keys > CPU_QUERIES:
        return attention_in_blocks(q_LHPK, k_LHSK, v_LHSK, scale)
    # Meta tensors have no values that the mask's corner could change, and what a GPU's mask imports takes a second.
    if queries == keys or q_LHPK.device.type == "meta":
        return F.scaled_dot_product_attention(q_LHPK, k_LHSK, v_LHSK, is_causal=True, scale=scale)
    mask = lower_right(queries, keys, q_LHPK.device)
    return F.scaled_dot_product_attention(q_LHPK, k_LHSK, v_LHSK, attn_mask=mask, scale=scale)


def lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """A causal mask whose last query sees every key, in the form that the device's kernels take."""
    if device.type == "cpu":
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    # PyTorch's own spares GPUs the mask. It brings PyTorch's compiler, two seconds of every process' start.
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(queries, keys)


def attention_in_blocks(q_LHPK: Tensor, k_LHSK: Tensor, v_LHSK: Tensor, scale: float | None) -> Tensor:
    """Causal attention from the last P of S positions, block of queries by block of queries, with no gradient.

    PyTorch's CPU kernel computes most of what a causal mask discards. Blocks of queries, each with the keys it can see,
    do without: 1.3 times as fast at 512 tokens (one core, 14 heads of 64; docs/benchmarks.md).
    """
    length = q_LHPK.shape[2]
    earlier = k_LHSK.shape[2] - length
    last = (length - 1) // CPU_QUERIES * CPU_QUERIES
    # Row i of a block that starts at s sees keys 0 to earlier + s + i. Blocks share this mask, each from another column
    # on.
    columns = earlier + last + CPU_QUERIES
    mask = torch.full((CPU_QUERIES, columns), -math.inf, dtype=q_LHPK.dtype).triu(earlier + last + 1)
    blocks = []
    for start in range(0, length, CPU_QUERIES):
        end = min(start + CPU_QUERIES, length)
        keys, values = k_LHSK[:, :, : earlier + end], v_LHSK[:, :, : earlier + end]
        seen = mask[: end - start, last - start : last - start + earlier + end]
        queries = q_LHPK[:, :, start:end]
        blocks.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale))
    return torch.cat(blocks, dim=2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    cache: Cache | None,
    layer: int,
    at: slice | Tensor = ALL,
    scale: float | None = None,
) -> Tensor:
    """Causal attention of q (L, P, H K), at positions `at`, to k and v (L, T, H K); (L, P, H K).

    With a cache the scale is 1 / sqrt(K), whatever `scale` says.
    """
    q_LHPK, k_LHTK, v_LHTK = (split_heads(part, heads, q.shape[-1] // heads) for part in (q, k, v))
    at_P = places(at, k.shape[-2], q.device)
    if cache is None:
        y_LHPK = causal_attention(q_LHPK, k_LHTK, v_LHTK, at_P, scale)
    else:
        y_LHPK = cache.attend(layer, q_LHPK, k_LHTK, v_LHTK, at_P)
    return y_LHPK.transpose(1, 2).reshape(q.shape)


def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, as in GPT-2: x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.gelu(x, approximate="tanh")
    # (1 + tanh(u)) / 2 is the logistic function of 2u, which PyTorch's CPU kernels have twice as fast as tanh: 1.9
    # instead of 3.9 ms for 512 x 2048 numbers on one core (docs/benchmarks.md).
    twice = 2 * math.sqrt(2 / math.pi)
    logits = (x * x).mul_(0.044715 * twice).add_(twice).mul_(x)
    return logits.sigmoid_().mul_(x)


class Attention(nn.Module):
    """This rank's heads of causal attention; the result is a part of a sum over ranks.

    Maps x_BTD to x_BPD, with `splits` x_NBTD to x_NBPD, P the positions `at`. `heads` counts per split.
    """

    def __init__(self, width: int, heads: int, head_size: int, splits: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        attended = heads * head_size
        self.qkv = Linear(width, 3 * attended, splits, bias, parts=(attended, 2 * attended))
        self.out = Linear(heads * head_size, width, splits, bias)

    def forward(self, x: Tensor, cache: Cache | None, layer: int, at: slice | Tensor = ALL) -> Tensor:
        # A cache keeps heads as they are.
        padding = wider(self.head_size, x, self.qkv.weight, HEAD) if cache is None else None
        if is_all(at) and not self.qkv.packed:
            q, k, v = self.qkv(x, out=padding).chunk(3, dim=-1)
        else:
            attended = self.heads * self.head_size
            q = self.qkv(x[..., at, :], slice(0, attended), out=padding)
            k, v = self.qkv(x, slice(attended, None), out=padding).chunk(2, dim=-1)
        scale = None if padding is None else self.head_size**-0.5
        return self.out(attend(q, k, v, self.heads, cache, layer, at, scale), into=padding, tile=HEAD)


class MLP(nn.Module):
    """This rank's part of the hidden layer; the result is a part of a sum over ranks."""

    def __init__(self, width: int, hidden: int, splits: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.up = Linear(width, hidden, splits, bias)
        self.down = Linear(hidden, width, splits, bias)

    def forward(self, x: Tensor) -> Tensor:
        padding = wider(self.down.weight.shape[-1], x, self.up.weight)
        return self.down(gelu(self.up(x, out=padding)), into=padding)


class Embedding(nn.Module):
    """Token and position embeddings, whole on every rank, and the head, of which a rank multiplies a part.

    A tied head is the token embedding, which is needed whole for looking up, so splitting the head by vocabulary
    costs no memory. An untied head (V, D) is stored in parts.
    """

    def __init__(self, config: Config, rank: int, world: int) -> None:
        super().__init__()
        self.vocab_size, self.part = config.vocab_size, -(-config.vocab_size // world)
        self.head_rows = slice(rank * self.part, min((rank + 1) * self.part, config.vocab_size))
        rows = self.head_rows.stop - self.head_rows.start
        if rows < 1:
            raise InputError(f"tp: expected at most vocab_size ({config.vocab_size}) parts, found {world}; lower it")
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.positions = nn.Parameter(torch.empty(config.block_size, config.width))
        self.head = None if config.tied else nn.Parameter(torch.empty(rows, config.width))

    def forward(self, tokens_BT: Tensor, cache: Cache | None) -> Tensor:
        self.check(tokens_BT)
        length = tokens_BT.shape[1]
        if cache is None and length > len(self.positions):
            raise InputError(
                f"tokens: expected at most block_size ({len(self.positions)}) of them in a row, found {length}; "
                "shorten the input"
            )
        # Row views where all rows start at 0: indexing would copy.
        positions = self.positions[:length] if cache is None else F.embedding(cache.positions(length), self.positions)
        return F.embedding(tokens_BT, self.tokens) + positions

    def check(self, tokens_BT: Tensor) -> None:
        """Refuse what is no batch of token ids.

        Values are looked at on a CPU alone: a GPU would have to be waited for, and a compiler could not go on.
        """
        if tokens_BT.dim() != 2 or tokens_BT.dtype not in (torch.int32, torch.int64):
            raise InputError(
                "tokens: expected whole numbers of shape (batch, time), found "
                f"{tokens_BT.dtype} of shape {tuple(tokens_BT.shape)}; give token ids"
            )
        if tokens_BT.device.type != "cpu" or torch.compiler.is_compiling() or not tokens_BT.numel():
            return
        low, high = (int(end) for end in tokens_BT.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise InputError(
                f"tokens: expected ids from 0 to {self.vocab_size - 1} (vocab_size {self.vocab_size}), found "
                f"{low if low < 0 else high}; use the tokenizer that the model was trained with"
            )

    def logits(self, y_BPD: Tensor, comm: Any) -> Tensor:
        """(B, P, D) to (B, P, V): every rank its part of the vocabulary, the last one's perhaps smaller; gathered."""
        part_BPV = product(y_BPD, self.tokens[self.head_rows] if self.head is None else self.head)
        if part_BPV.shape[-1] < self.part:
            part_BPV = F.pad(part_BPV, (0, self.part - part_BPV.shape[-1]))
        return comm.all_gather(part_BPV, dim=-1).wait()[..., : self.vocab_size]


def initialise(module: nn.Module, n_layer: int, splits: int) -> None:
    """Draw weights as the authors do: normal(0, 0.02), projections back into the residual stream smaller by
    sqrt(2 n_layer N), LayerNorm weights 1, biases 0 (arXiv 2408.07802, training/kraken.py of its release).
    """
    residual_std = INITIAL_STD / math.sqrt(2 * n_layer * splits)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif not decays(name):
            nn.init.ones_(parameter)
        else:
            into_residual = name.endswith((".out.weight", ".down.weight"))
            nn.init.normal_(parameter, std=residual_std if into_residual else INITIAL_STD)


def decays(name: str) -> bool:
    """Whether AdamW decays this parameter: all but biases and LayerNorm weights (whose batches have two dimensions)."""
    return "norm" not in name and not name.endswith("bias")


def part(tensor: Tensor, dim: int, rank: int, world: int, segments: tuple[int, ...] | None = None) -> Tensor:
    """A rank's share of `tensor` along `dim`; of each segment on its own where it holds several side by side."""
    pieces = tensor.split(segments or [tensor.shape[dim]], dim=dim)
    return torch.cat([piece.chunk(world, dim=dim)[rank] for piece in pieces], dim=dim)


def share(name: str, tensor: Tensor, width: int, rank: int, world: int, stacked: bool = False) -> Tensor:
    """A rank's share of a tensor of Attention, MLP, LayerNorm or Embedding, by its name.

    Rows of what leads into heads (q, k, v of `width` each) and hidden units, columns of what leads out of them.
    With `stacked` weights have a dimension for splits before all others.
    """
    rows = int(stacked)
    if ".qkv." in name:
        return part(tensor, rows, rank, world, (width,) * 3)
    if ".up." in name or name == "embedding.head":
        return part(tensor, rows, rank, world)
    if name.endswith((".out.weight", ".down.weight")):
        return part(tensor, rows + 1, rank, world)
    if name.endswith((".out.bias", ".down.bias")):
        return once(tensor, rank)
    return tensor


def once(bias: Tensor, rank: int) -> Tensor:
    """The bias behind a product whose parts are summed over ranks: rank 0 adds it, the others add nothing."""
    return bias if rank == 0 else torch.zeros_like(bias)


def check_world(config: Config, world: int) -> None:
    """Refuse a number of ranks over which heads cannot be divided evenly.

    Raises:
        InputError: naming the numbers that work.
    """
    if config.n_head % world:
        works = ", ".join(str(n) for n in range(1, config.n_head + 1) if config.n_head % n == 0)
        raise InputError(f"tp: expected a divisor of n_head ({config.n_head}: {works}), found {world}; choose one")
