"""The kernels of ``source/compensate.c`` on torch tensors; matrices come columns first.

Every function needs float32 tensors on the CPU and ``native.library()`` to be there.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics import native
from gemquant.numerics.affine import AffineRounding

LARGEST_BLOCK = 128
ROWS_PER_TASK = 64  # one tile; fewer would be padded to it


@dataclass(frozen=True)
class ColumnBlock:
    """Consecutive columns of one group, being rounded; errors and codes are written in place.

    weight: (columns, rows), unscaled. errors: (columns, rows), weight − decoded codes.
    codes: (columns, rows) uint8. column_scales: (columns,), rounding happens in units of weight
    times this. scales, zero_points: (rows,), the group's.
    """

    weight: Tensor
    errors: Tensor
    codes: Tensor
    column_scales: Tensor
    scales: Tensor
    zero_points: Tensor
    rounding: AffineRounding


class _Rounding(ctypes.Structure):
    _fields_ = (
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("largest_code", ctypes.c_float),
        ("biased", ctypes.c_int32),
    )


def round_columns(block: ColumnBlock, feedback: Tensor, triangle: Tensor) -> None:
    """``gptq.round_columns`` for at most 128 columns."""
    _write(block, "gq_compensate", (block.weight, feedback, triangle))


def descend_columns(block: ColumnBlock, gradient: Tensor, gram: Tensor, curvature: Tensor) -> None:
    """``gptq.descend_columns`` for at most 128 columns."""
    _write(block, "gq_refine", (block.weight, gradient, gram, curvature))


def losses(
    values: Tensor, metric: Tensor, scales: Tensor, zero_points: Tensor, rounding: AffineRounding
) -> Tensor:
    """Σ metric · error² of rounding each row with each candidate; (candidates, rows).

    values: (columns, rows). metric: (columns,). scales, zero_points: (candidates, rows).
    """
    candidates, rows = scales.shape
    scales, zero_points, metric = (t.contiguous() for t in (scales, zero_points, metric))
    results = torch.empty_like(scales)
    form = (float(rounding.largest_code), ctypes.c_int32(rounding.biased))
    tensors, sizes = (values, metric, scales, zero_points), (candidates, values.shape[0], rows)

    def part(first: int, last: int) -> None:
        native.call("gq_price", *tensors, *form, *sizes, first, last, results)

    native.over_rows(part, rows, threads=torch.get_num_threads(), at_least=ROWS_PER_TASK)
    return results


def _write(block: ColumnBlock, name: str, tensors: tuple[Tensor, ...]) -> None:
    columns, rows = block.weight.shape
    assert columns <= LARGEST_BLOCK
    # These names keep the tensors alive: the kernel sees addresses alone.
    inputs = [tensor.contiguous() for tensor in (*tensors, block.column_scales)]
    scales, zero_points = block.scales.contiguous(), block.zero_points.contiguous()
    rounding = _Rounding(
        scales.data_ptr(),
        zero_points.data_ptr(),
        block.rounding.largest_code,
        block.rounding.biased,
    )

    def part(first: int, last: int) -> None:
        sizes = (columns, rows, first, last)
        native.call(name, *inputs, ctypes.byref(rounding), *sizes, block.errors, block.codes)

    native.over_rows(part, rows, threads=torch.get_num_threads(), at_least=ROWS_PER_TASK)
