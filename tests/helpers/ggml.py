"""ggml's own quantization, the oracle of ours: from the shared library in the package xllamacpp."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch
from torch import Tensor

from gemquant.numerics.ggml_types import GgmlType
from gemquant.runtimes.llamacpp_library import shared_objects

FUSED = platform.machine().lower() not in {"x86_64", "amd64"}
"""On 64-bit ARM the package's ggml is compiled with fused products and sums: other bytes."""


@cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it is not installed."""
    return next((ctypes.CDLL(str(path)) for path in shared_objects()), None)


def quantize(
    weight: Tensor, kind: GgmlType, importance: Tensor | None = None, *, ggml: ctypes.CDLL
) -> Tensor:
    """``ggml_quantize_chunk`` of rows."""
    rows, columns = weight.shape
    out = torch.full((rows, kind.row_bytes(columns)), 0xAA, dtype=torch.uint8)
    function = ggml.ggml_quantize_chunk
    addresses, sizes = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 3
    function.argtypes = [ctypes.c_int, *addresses, *sizes, ctypes.c_void_p]
    function.restype = ctypes.c_size_t
    weights = None if importance is None else importance.data_ptr()
    function(kind.number, weight.data_ptr(), out.data_ptr(), 0, rows, columns, weights)
    return out
