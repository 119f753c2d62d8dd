"""The kernels of ``source/compensate.c`` on torch tensors; matrices come columns first.

Every function needs float32 tensors on the CPU and ``library()`` to be there.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemquant.numerics.native import library, over_rows

if TYPE_CHECKING:
    from gemquant.numerics.affine import AffineRounding
    from gemquant.numerics.column_run import ColumnRun

LARGEST_BLOCK = 128
ROWS_PER_RUN = 64  # one tile; a shorter run would be padded to it


class _Rounding(ctypes.Structure):
    _fields_ = (
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("largest_code", ctypes.c_float),
        ("biased", ctypes.c_int32),
    )


def is_usable(tensor: Tensor) -> bool:
    """Whether the kernels can work on a tensor's device."""
    return tensor.device.type == "cpu" and library() is not None


def compensate(run: ColumnRun, feedback: Tensor, triangle: Tensor) -> None:
    """``column_run.compensate_run`` for at most 128 columns."""
    _write(run, "gq_compensate", (run.wanted, feedback, triangle))


def refine(run: ColumnRun, gradient: Tensor, gram: Tensor, curvature: Tensor) -> None:
    """``column_run.refine_run`` for at most 128 columns."""
    _write(run, "gq_refine", (run.wanted, gradient, gram, curvature))


def price(
    values: Tensor, metric: Tensor, scales: Tensor, zero_points: Tensor, rounding: AffineRounding
) -> Tensor:
    """Σ metric · error² of rounding each row with each candidate; (candidates, rows).

    values: (columns, rows). metric: (columns,). scales, zero_points: (candidates, rows).
    """
    candidates, rows = scales.shape
    scales, zero_points, metric = (t.contiguous() for t in (scales, zero_points, metric))
    prices = torch.empty_like(scales)
    kernel = _library().gq_price

    def run(first: int, last: int) -> None:
        kernel(
            *map(_pointer, (values, metric, scales, zero_points)),
            ctypes.c_float(rounding.largest_code),
            ctypes.c_int32(rounding.biased),
            *map(ctypes.c_int64, (candidates, values.shape[0], rows, first, last)),
            _pointer(prices),
        )

    over_rows(run, rows, threads=torch.get_num_threads(), at_least=ROWS_PER_RUN)
    return prices


def _write(run: ColumnRun, name: str, tensors: tuple[Tensor, ...]) -> None:
    kernel = _library()[name]
    columns, rows = run.wanted.shape
    assert columns <= LARGEST_BLOCK
    # Held here: the kernel sees addresses alone.
    inputs = [tensor.contiguous() for tensor in (*tensors, run.column_scales)]
    scales, zero_points = run.scales.contiguous(), run.zero_points.contiguous()
    rounding = _Rounding(
        scales.data_ptr(),
        zero_points.data_ptr(),
        run.rounding.largest_code,
        run.rounding.biased,
    )

    def part(first: int, last: int) -> None:
        kernel(
            *map(_pointer, inputs),
            ctypes.byref(rounding),
            *map(ctypes.c_int64, (columns, rows, first, last)),
            _pointer(run.errors),
            _pointer(run.codes),
        )

    over_rows(part, rows, threads=torch.get_num_threads(), at_least=ROWS_PER_RUN)


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "is_usable() was not asked"
    return found


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
