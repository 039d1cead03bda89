"""Products with matrices, one or one per split in one batched call, of sizes that suit the device.

Shapes: D width of x, E width of the result, N splits, R rows.
"""

from typing import Any, NamedTuple

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
            out, into, tile: see `product`.
        """
        weight, bias = self.weight, self.bias
        if self.packed:
            if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
                found = "autocast" if x.dtype == torch.float32 else x.dtype
                raise ValueError(f"packed weights: expected float32 and no autocast, found {found}")
            check_splits(x, weight)
            if x.requires_grad and torch.is_grad_enabled():
                raise ValueError("packed weights: expected an input without a gradient, found one with; do not pack")
            start, stop, _ = (rows or slice(None)).indices(weight.shape[-2])
            return packed_product(x, self.packed[start, stop], None if bias is None else bias[..., start:stop])
        if rows is not None:
            weight, bias = weight[..., rows, :], None if bias is None else bias[..., rows]
        return product(x, weight, bias, out, into, tile)

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


def wider(size: int, x: Tensor, weight: Tensor, tile: int = TILE) -> tuple[int, int] | None:
    """(size, wide): how wide blocks of `size` rows of `weight` should be; None where as wide as they are."""
    wide = aligned(size, x, weight, tile)
    return None if wide == size else (size, wide)


class Padding(NamedTuple):
    """Zeros along one dimension of a weight: behind each of its blocks, and behind all of them."""

    blocks: int
    size: int  # of a block
    wide: int  # of a block with its zeros
    total: int

    @classmethod
    def of(cls, width: int, total: int, each: tuple[int, int] | None = None) -> "Padding":
        """`width` entries padded to `total`; `each`: (size, wide) of the blocks, where they are not one block."""
        size, wide = each or (width, width)
        return cls(width // size, size, wide, total)

    @property
    def none(self) -> bool:
        return self.total == self.blocks * self.size

    @property
    def behind(self) -> int:
        """Zeros behind all blocks."""
        return self.total - self.blocks * self.wide

    @property
    def within(self) -> int:
        """How wide a block is with its zeros and, where it is the only one, with those behind it."""
        return self.total if self.blocks == 1 else self.wide


AS_IT_IS = Padding.of(1, 1)


def pad(weight: Tensor, rows: Padding, columns: Padding) -> Tensor:
    """The weight (..., E, D) with its zeros."""
    if rows.none and columns.none:
        return weight
    # A compiler fuses less around a dimension of one block.
    blocks, zeros = weight, [0, columns.within - columns.size]
    if columns.blocks > 1:
        blocks, zeros = blocks.unflatten(-1, (columns.blocks, columns.size)), [*zeros, 0, 0]
    if rows.blocks > 1:
        blocks = blocks.unflatten(weight.dim() - 2, (rows.blocks, rows.size))
    blocks = F.pad(blocks, [*zeros, 0, rows.within - rows.size])
    wide = blocks.reshape(*weight.shape[:-2], rows.blocks * rows.within, columns.blocks * columns.within)
    behind = [0, columns.total - wide.shape[-1], 0, rows.total - wide.shape[-2]]
    return F.pad(wide, behind) if any(behind) else wide  # padding by nothing is a copy


def unpad(gradient: Tensor, rows: Padding, columns: Padding, dtype: torch.dtype) -> Tensor:
    """The gradient of a weight (N, E, D), as `dtype`, from that of the padded one."""
    if rows.none and columns.none:
        return gradient.to(dtype)
    gradient = gradient[:, : rows.blocks * rows.within, : columns.blocks * columns.within]
    blocks = gradient.unflatten(-1, (columns.blocks, columns.within)).unflatten(-3, (rows.blocks, rows.within))
    return blocks[..., : rows.size, :, : columns.size].to(dtype).flatten(-2).flatten(1, 2)


def lengthened(x: Tensor, zeros: int) -> Tensor:
    """x_...D with zeros behind its D numbers."""
    return F.pad(x, (0, zeros)) if zeros else x


def shortened(x: Tensor, width: int) -> Tensor:
    """The first `width` numbers of x_...D."""
    return x if x.shape[-1] == width else x[..., :width]


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out: tuple[int, int] | None = None,
    into: tuple[int, int] | None = None,
    tile: int = TILE,
) -> Tensor:
    """x times the transposed weight, plus the bias, of sizes that suit the device; the result has no zeros but `out`'s.

    weight: (E, D), or (N, E, D) with splits.

    Args:
        out: (size, wide): zeros behind every `size` numbers of the result, so that they are `wide`.
        into: the same of x, which has them.
        tile: what a compiler pads D to a multiple of. Where x is no compiler's own work padding it copies it.
    """
    width_out, width_in = (
        width if each is None else width // each[0] * each[1]
        for width, each in zip(weight.shape[-2:], (out, into), strict=True)
    )
    rows = Padding.of(weight.shape[-2], aligned(width_out, x, weight), out)
    columns = Padding.of(weight.shape[-1], aligned(width_in, x, weight, tile), into)
    check_splits(x, weight)
    if weight.dim() == 2:
        return plain_product(x, weight, bias, rows, columns)
    if len(weight) == 1:  # one split on this rank: the plain product is the faster one
        return plain_product(x[0], weight[0], None if bias is None else bias[0], rows, columns).unsqueeze(0)
    y = shortened(BatchedProduct.apply(x, weight, rows, columns), width_out).view(*x.shape[:-1], width_out)
    if bias is None:
        return y
    bias = pad(bias[..., None], rows._replace(total=width_out), AS_IT_IS)
    return y + bias.view(len(bias), *[1] * (y.dim() - 2), width_out).to(y.dtype)


def check_splits(x: Tensor, weight: Tensor) -> None:
    if weight.dim() == 3 and len(x) != len(weight):
        raise ValueError(f"x: expected a part for each of the weight's {len(weight)} splits, found {len(x)}")


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Padding, columns: Padding) -> Tensor:
    """The product with one weight (E, D), both padded, without the zeros behind the result."""
    if rows.none and columns.none:
        return F.linear(x, weight, bias)
    x, weight = lengthened(autocast(x), columns.behind), pad(autocast(weight), rows, columns)
    bias = None if bias is None else pad(bias[:, None], rows, AS_IT_IS)[:, 0]
    return shortened(F.linear(x, weight, bias), rows.total - rows.behind)


class BatchedProduct(torch.autograd.Function):
    """x_N...D times the transposed weight_NED, both padded: (N, R, E), the zeros behind E included. Derived once only.

    PyTorch's backward of bmm gives the weight's gradient transposed, and copies it for the optimizer: a tenth of a
    training step at width 504 on a CPU. Padding is part of this function, as its own steps' backward would launch more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NED: Tensor, rows: Padding, columns: Padding) -> Tensor:
        # Backward mostly runs outside of autocast: what it multiplies has to be of one type.
        x_NRD = lengthened(autocast(x).flatten(1, -2), columns.behind)
        padded_NED = pad(autocast(weight_NED), rows, columns)
        ctx.save_for_backward(x_NRD, padded_NED)
        ctx.shape, ctx.dtypes, ctx.rows, ctx.columns = x.shape, (x.dtype, weight_NED.dtype), rows, columns
        return torch.bmm(x_NRD, padded_NED.mT)

    @staticmethod
    def backward(ctx: Any, dy_NRE: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_NRD, padded_NED = ctx.saved_tensors
        dx, dweight = None, None
        if ctx.needs_input_grad[0]:
            dx = shortened(torch.bmm(dy_NRE, padded_NED), ctx.shape[-1]).view(ctx.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            dweight = unpad(torch.bmm(dy_NRE.mT, x_NRD), ctx.rows, ctx.columns, ctx.dtypes[1])
        return dx, dweight, None, None


def refuse_second_derivative() -> None:
    """Called in a backward whose saved tensors are no inputs: what is computed from them knows not where it is from.

    Raises:
        RuntimeError: gradients of these gradients are to be taken (create_graph).
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("create_graph: expected False, since splits have no second derivatives, found True")
