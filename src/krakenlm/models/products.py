"""Products with matrices, one or one per split in one batched call, of sizes that suit the device.

Shapes: D width of x, E width of the result, N splits, R rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Sizes that suit a GPU. Where rows are no multiple of 16 bytes, 8 elements of 16 bits, cuBLAS reaches a third of the
# rate that it has for them padded with zeros, and for a multiple of 64 a tenth more than for one of 8. Attention pads
# heads to a multiple of 8 by itself, but copies q, k and v for it, and leaves out cuDNN's kernel, most often the
# fastest (docs/benchmarks.md, one H100). It pays where many rows share the padded weights; how many is a guess.
ALIGNMENT, TILE, HEAD = {"cuda": 8}, 64, 8
MANY_ROWS = 128
# Numbers of a weight that is worth packing for a CPU: below, calling the packed product takes longer than it saves. (Of
# one row, decoding, it saves nothing; docs/benchmarks.md.)
PACKED = 2**16


class Linear(nn.Module):
    """Product with one matrix, or with one matrix per split at once.

    weight: (E, D), or (N, E, D) with splits; bias: (E,) or (N, E). Maps x_BTD to x_BTE, or x_NBTD to x_NBTE.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        splits: int | None = None,
        bias: bool = False,
        parts: tuple[int, ...] | None = None,
    ) -> None:
        """`parts`: how many rows, one after another, may be asked for by themselves; by default all or none."""
        super().__init__()
        self.parts = parts or (width_out,)
        self.packed: dict[tuple[int, int], list[Tensor]] = {}
        stacked = () if splits is None else (splits,)
        self.weight = nn.Parameter(torch.empty(*stacked, width_out, width_in))
        self.bias = nn.Parameter(torch.empty(*stacked, width_out)) if bias else None

    def forward(
        self,
        x: Tensor,
        rows: slice | None = None,
        out: tuple[int, int] | None = None,
        into: tuple[int, int] | None = None,
        tile: int = TILE,
    ) -> Tensor:
        """The product with all rows of the weight, or with some: a part of the result.

        Args:
            out: (size, wide): zeros behind every `size` numbers of the result, so that they are `wide`.
            into: the same of x, which has them.
            tile: see `product`.
        """
        weight, bias = self.weight, self.bias
        if self.packed:
            if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
                found = "autocast" if x.dtype == torch.float32 else x.dtype
                raise ValueError(f"packed weights: expected float32 and no autocast, found {found}")
            if x.requires_grad and torch.is_grad_enabled():
                raise ValueError("packed weights: expected an input without a gradient, found one with; do not pack")
            start, stop, _ = (rows or slice(None)).indices(weight.shape[-2])
            return packed_product(x, self.packed[start, stop], None if bias is None else bias[..., start:stop])
        if rows is not None:
            weight, bias = weight[..., rows, :], None if bias is None else bias[..., rows]
        if out is not None:
            weight, bias = widened(autocast(weight), -2, *out), None if bias is None else widened(bias, -1, *out)
        if into is not None:
            weight = widened(autocast(weight), -1, *into)
        return product(x, weight, bias, tile)

    @torch.no_grad()
    def pack(self) -> None:
        """Give the weight up for its parts in the layout in which a CPU's products read them, where that is faster."""
        if self.packed or not packable(self.weight[..., : min(self.parts), :]):
            return
        weight_NED = self.weight if self.weight.dim() == 3 else self.weight[None]
        stop = 0
        for rows in self.parts:
            start, stop = stop, stop + rows
            self.packed[start, stop] = [pack_weight(weight_ED[start:stop]) for weight_ED in weight_NED]
        self.weight = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)

    def refuse_packed(self) -> None:
        if self.packed:
            raise ValueError("packed weights can neither be moved, converted, loaded nor saved; do so before `pack`")

    def _apply(self, *arguments: Any, **named: Any) -> "Linear":
        self.refuse_packed()
        return super()._apply(*arguments, **named)

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self.refuse_packed()
        super()._load_from_state_dict(*arguments, **named)

    def _save_to_state_dict(self, *arguments: Any, **named: Any) -> None:
        self.refuse_packed()
        super()._save_to_state_dict(*arguments, **named)


def pack(module: nn.Module) -> nn.Module:
    """The module, its products' weights packed: from here on it computes, without gradients, and does nothing else.

    Moving, converting or loading it, or asking for its state_dict, raises ValueError, perhaps after the first
    parameters; it can be neither copied deeply nor pickled.
    """
    for each in module.modules():
        if isinstance(each, Linear):
            each.pack()
    if any(isinstance(each, Linear) and each.packed for each in module.modules()):
        module.requires_grad_(False)
        for parameter in module.parameters():
            # Of a file that was mapped one parameter keeps the whole, and with it the weights that were given up.
            parameter.data = parameter.data.clone()
    return module


def packable(weight: Tensor) -> bool:
    """Whether a weight (E, D), or those of splits (N, E, D), are ones that packing makes faster."""
    if weight.dtype != torch.float32 or weight.shape[-2:].numel() < PACKED:
        return False
    # What runs on meta tensors stands for some CPU's engine.
    return weight.is_meta or (weight.device.type == "cpu" and torch.backends.mkldnn.is_available())


def pack_weight(weight_ED: Tensor) -> Tensor:
    """The weight in oneDNN's own layout, which it would otherwise bring it into at every product."""
    if weight_ED.is_meta:
        return weight_ED
    return torch.ops.mkldnn._reorder_linear_weight(weight_ED.contiguous(), None)


def packed_product(x: Tensor, weights: list[Tensor], bias: Tensor | None) -> Tensor:
    """x times the transposed packed weight (E, D), plus the bias; of N splits one after another."""
    if len(weights) == 1:
        return packed_linear(x, weights[0], None if bias is None else bias.flatten())
    biases = [None] * len(weights) if bias is None else list(bias)
    # Of packed weights there is no batched product.
    return torch.stack([packed_linear(*split) for split in zip(x, weights, biases, strict=True)])


def packed_linear(x: Tensor, weight: Tensor, bias_E: Tensor | None) -> Tensor:
    """x times one packed weight, plus the bias."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias_E, "none", [], "")


def autocast(tensor: Tensor) -> Tensor:
    """The tensor as a product under autocast takes it: whoever pads before moves half the bytes."""
    device = tensor.device.type
    # Meta tensors know nothing of autocast.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def widened(tensor: Tensor, dim: int, size: int, wide: int) -> Tensor:
    """Zeros behind every `size` entries along `dim`, counted from the last (-1): `wide` each."""
    blocks = F.pad(tensor.unflatten(dim, (-1, size)), (0, 0) * (-dim - 1) + (0, wide - size))
    return blocks.flatten(dim - 1, dim)


def aligned(size: int, x: Tensor, weight: Tensor, tile: int = TILE) -> int:
    """The size that products of x with `weight` should have on its device in place of `size`."""
    step = ALIGNMENT.get(x.device.type)
    weights = len(weight) if weight.dim() == 3 else 1
    if step is None or x.numel() < MANY_ROWS * x.shape[-1] * weights:
        return size
    # What a compiler pads it writes so in the first place.
    if size % (tile if torch.compiler.is_compiling() else step) == 0:
        return size
    return -(-size // tile) * tile


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: int = TILE) -> Tensor:
    """x times the transposed weight, plus the bias, of sizes that suit the device; the result has its own.

    weight: (E, D), or (N, E, D) with splits.

    Args:
        tile: what a compiler pads D to a multiple of. Where x is no compiler's own work padding it copies it.
    """
    width_out, width_in = weight.shape[-2:]
    more_out = aligned(width_out, x, weight) - width_out
    more_in = aligned(width_in, x, weight, tile) - width_in
    if not (more_out or more_in):
        return plain_product(x, weight, bias)
    if more_in:  # padding by nothing is a copy
        x = F.pad(autocast(x), (0, more_in))
    bias = None if bias is None else F.pad(bias, (0, more_out))
    return plain_product(x, F.pad(autocast(weight), (0, more_in, 0, more_out)), bias)[..., :width_out]


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as they are; with weights (N, E, D) split by split, in one batched product."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if len(weight) == 1:  # one split on this rank: the plain product is the faster one
        return F.linear(x[0], weight[0], None if bias is None else bias[0]).unsqueeze(0)
    # Autocast would not reach into BatchedProduct.
    x, weight = autocast(x), autocast(weight)
    y = BatchedProduct.apply(x.flatten(1, -2), weight)
    if bias is not None:
        y = y + bias[:, None].to(y.dtype)
    return y.unflatten(1, x.shape[1:-1])


class BatchedProduct(torch.autograd.Function):
    """x_NRD times the transposed weight_NED, (N, R, E), the weight's gradient in the weight's own layout.

    PyTorch's backward of bmm gives the transpose of it, and copies it for the optimizer: a tenth of a training step at
    width 504 on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_NRD: Tensor, weight_NED: Tensor) -> Tensor:
        ctx.save_for_backward(x_NRD, weight_NED)
        return torch.bmm(x_NRD, weight_NED.mT)

    @staticmethod
    def backward(ctx: Any, gradient_NRE: Tensor) -> tuple[Tensor, Tensor]:
        x_NRD, weight_NED = ctx.saved_tensors
        return torch.bmm(gradient_NRE, weight_NED), torch.bmm(gradient_NRE.mT, x_NRD)
