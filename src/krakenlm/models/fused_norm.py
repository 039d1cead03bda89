"""LayerNorm with a weight per split on a GPU, as one Triton kernel forward and one backward.

PyTorch's LayerNorm takes one weight. Without one, and the splits' weights multiplied on behind it, eager training reads
and writes every activation five times more, in float32. Here a program normalises rows of one split, and writes them in
the type that the product behind it takes.

Shapes: x_NRD, weight_ND, bias_ND; N splits, R rows, D width. statistics: (N R, 2), each row's mean and 1 / deviation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from krakenlm.models.products import refuse_second_derivative

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ELEMENTS = 2048  # of a tile in the backward: rows side by side times their padded width
PROGRAMS = 1024  # of the backward: each sums its rows' part of the weight's gradient


@triton.jit
def forward_kernel(
    x, weight, bias, y, statistics, rows, width, stride_split, eps, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    split = row // rows
    d = tl.arange(0, BLOCK)
    inside = d < width
    x_D = tl.load(x + split * stride_split + (row - split * rows) * width + d, mask=inside, other=0.0).to(tl.float32)
    mean_1 = tl.sum(x_D, axis=0) / width
    centred_D = tl.where(inside, x_D - mean_1, 0.0)
    rstd_1 = 1.0 / tl.sqrt(tl.sum(centred_D * centred_D, axis=0) / width + eps)
    y_D = centred_D * rstd_1 * tl.load(weight + split * width + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y_D += tl.load(bias + split * width + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + d, y_D.to(y.dtype.element_ty), mask=inside)
    tl.store(statistics + 2 * row, mean_1)
    tl.store(statistics + 2 * row + 1, rstd_1)


@triton.jit
def backward_kernel(
    dy, x, weight, statistics, dx, dweight, dbias, rows, width, stride_split, stride_dy_split, stride_dy,
    ROWS_EACH: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With n_R = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)), means over the width."""
    part, split = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < width
    weight_1D = tl.load(weight + split * width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    dweight_D, dbias_D = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    end = tl.minimum((part + 1) * ROWS_EACH, rows)
    for first in range(0, ROWS_EACH, ROWS):
        r = part * ROWS_EACH + first + tl.arange(0, ROWS)
        there = (r < end)[:, None] & inside[None, :]
        r_R1 = r.to(tl.int64)[:, None]
        at = r_R1 * width + d[None, :]
        x_RD = tl.load(x + split * stride_split + at, mask=there, other=0.0).to(tl.float32)
        dy_RD = tl.load(dy + split * stride_dy_split + r_R1 * stride_dy + d[None, :], mask=there, other=0.0)
        dy_RD = dy_RD.to(tl.float32)
        mean_R = tl.load(statistics + 2 * (split * rows + r), mask=r < end, other=0.0)
        rstd_R = tl.load(statistics + 2 * (split * rows + r) + 1, mask=r < end, other=0.0)
        n_RD = tl.where(there, (x_RD - mean_R[:, None]) * rstd_R[:, None], 0.0)
        g_RD = dy_RD * weight_1D
        mean_g_R = tl.sum(g_RD, axis=1) / width
        mean_gn_R = tl.sum(g_RD * n_RD, axis=1) / width
        dx_RD = (g_RD - mean_g_R[:, None] - n_RD * mean_gn_R[:, None]) * rstd_R[:, None]
        tl.store(dx + split * rows * width + at, dx_RD.to(dx.dtype.element_ty), mask=there)
        dweight_D += tl.sum(dy_RD * n_RD, axis=0)
        if HAS_BIAS:
            dbias_D += tl.sum(dy_RD, axis=0)
    place = (split * tl.num_programs(0) + part) * width + d
    tl.store(dweight + place, dweight_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + place, dbias_D, mask=inside)


class SplitLayerNorm(torch.autograd.Function):
    """See `split_layer_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        x_NRD = x.flatten(1, -2)
        splits, rows, width = x_NRD.shape
        if x_NRD.stride()[1:] != (width, 1):
            x_NRD = x_NRD.contiguous()
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        statistics = torch.empty(splits * rows, 2, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):  # Triton starts kernels on the current device
            forward_kernel[(splits * rows,)](
                x_NRD, weight, bias, y, statistics, rows, width, x_NRD.stride(0), eps,
                HAS_BIAS=bias is not None, BLOCK=triton.next_power_of_2(width), num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(x_NRD, weight, statistics)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x_NRD, weight, statistics = ctx.saved_tensors
        splits, rows, width = x_NRD.shape
        dy_NRD = dy.flatten(1, -2)
        if dy_NRD.stride(2) != 1:
            dy_NRD = dy_NRD.contiguous()
        dx = torch.empty(dy.shape, dtype=x_NRD.dtype, device=dy.device)
        block = triton.next_power_of_2(width)
        side_by_side = max(1, ELEMENTS // block)
        rows_each = -(-rows // max(1, PROGRAMS // splits) // side_by_side) * side_by_side
        parts = -(-rows // rows_each)
        dweight = torch.empty(splits, parts, width, dtype=torch.float32, device=dy.device)
        dbias = torch.empty_like(dweight) if ctx.has_bias else None
        with torch.cuda.device_of(dy):
            backward_kernel[(parts, splits)](
                dy_NRD, x_NRD, weight, statistics, dx, dweight, dbias,
                rows, width, x_NRD.stride(0), dy_NRD.stride(0), dy_NRD.stride(1),
                ROWS_EACH=rows_each, ROWS=side_by_side, HAS_BIAS=ctx.has_bias, BLOCK=block, num_warps=8,
            )  # fmt: skip
        dweight = dweight.sum(1).to(weight.dtype)
        return dx, dweight, dbias.sum(1).to(weight.dtype) if ctx.has_bias else None, None, None


def split_layer_norm(x: Tensor, weight_ND: Tensor, bias_ND: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of x_N...D over D with each split's weight and bias, computed in float32, the result as `dtype`."""
    return SplitLayerNorm.apply(x, weight_ND, bias_ND, eps, dtype)
