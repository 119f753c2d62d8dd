"""Kernels that quantize rows to ggml's blocks: our own, and ggml's as oracle and fallback.

Ours are C functions in ``numerics/native/source``, looked up by name: ``gq_quantize_`` and
ggml's name of the type in lower case. They write what ``ggml_quantize_chunk`` would:

    void gq_quantize_q4_k(const float *x, uint8_t *out, int64_t rows, int64_t columns,
                          const float *importance);  // (columns,) or NULL

Its bytes are those of ggml as compiled for x86-64, on every processor: 64-bit ARM's ggml is usually
compiled with fused products and sums, and differs in a small share of bytes from both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from gemquant.numerics import native
from gemquant.numerics.ggml.library import ggml
from gemquant.numerics.ggml.types import GgmlType

Kernel = Callable[[int, int, int, int, int | None], object]
"""Addresses of weights and blocks, rows, columns, address of the importances or None."""

_ARGUMENTS = [
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
]


def kernel_of(kind: GgmlType) -> Kernel | None:
    """The fastest kernel for a type: ours, else ggml's, else None."""
    library = native.library()
    return (library and own_kernel(library, kind)) or ggml_kernel(kind)


def own_kernel(library: ctypes.CDLL, kind: GgmlType) -> Kernel | None:
    """Our kernel for a type in one of our libraries, or None where there is none."""
    function = getattr(library, f"gq_quantize_{kind.name.lower()}", None)
    if function is None:
        return None
    function.argtypes, function.restype = _ARGUMENTS, None
    kernel: Kernel = function
    return kernel


def ggml_kernel(kind: GgmlType) -> Kernel | None:
    """``ggml_quantize_chunk`` for a type, or None where ggml is not installed."""
    library = ggml()
    if library is None:
        return None

    def quantize(x: int, out: int, rows: int, columns: int, importance: int | None) -> None:
        library.ggml_quantize_chunk(kind.number, x, out, 0, rows, columns, importance)

    return quantize
