"""Rows of weights to ggml's blocks and back: our own kernels, and ggml's as oracle and fallback.

Ours are C functions in ``numerics/native/source``, looked up by name: ``gq_quantize_`` and
ggml's name of the type in lower case. They write what ``ggml_quantize_chunk`` would:

    void gq_quantize_q4_k(const float *x, uint8_t *out, int64_t rows, int64_t columns,
                          const float *importance);  // (columns,) or NULL
    void gq_dequantize_q4_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns);

Its bytes are those of ggml as compiled for x86-64, on every processor: 64-bit ARM's ggml is usually
compiled with fused products and sums, and differs in a small share of bytes from both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import gguf
import numpy as np
import torch
from torch import Tensor

from gemquant.errors import RuntimeMissingError
from gemquant.numerics import native
from gemquant.numerics.ggml_library import ggml
from gemquant.numerics.ggml_types import GgmlType

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


# ---------------------------------------------------------------- quantizing


INSTALL = "pip install 'gemquant[gguf]'"
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def quantize_rows(
    weight: Tensor, kind: GgmlType, *, importance: Tensor | None = None, threads: int = 1
) -> Tensor:
    """Quantize a weight (rows, columns) float32 row by row, as llama.cpp's own tools would.

    columns: whole blocks of ``kind``. importance: (columns,) float32, how much each column's error
    counts; floating-point types ignore it.
    Returns (rows, bytes of a row) uint8, the same for any number of threads.
    RuntimeMissingError without a kernel of ours and without ggml.
    """
    rows, columns = weight.shape
    weight = weight.contiguous()
    if kind.is_float:
        return weight.to(_FLOATS[kind.name]).view(torch.uint8).view(rows, -1)
    out = torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8)
    kernel = kernel_of(kind)
    if kernel is None:
        raise RuntimeMissingError(
            f"{kind.name}: no library that quantizes it is installed.", hint=INSTALL
        )
    weights = None if importance is None else importance.to(torch.float32).contiguous()

    def run(start: int, stop: int) -> None:
        kernel(
            weight[start:].data_ptr(),
            out[start:].data_ptr(),
            stop - start,
            columns,
            None if weights is None else weights.data_ptr(),
        )

    native.over_rows(run, rows, threads=threads)
    return out


# ---------------------------------------------------------------- decoding


Decoder = Callable[[int, int, int, int], object]
"""Addresses of blocks and numbers, rows, columns."""

_DECODER_ARGUMENTS = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]


def dequantize_rows(blocks: Tensor, kind: GgmlType, *, threads: int = 1) -> Tensor:
    """Decode (rows, bytes of a row) uint8 to (rows, columns) float32.

    A damaged block decodes to infinity or NaN, without a warning.
    """
    library = native.library()
    decoder = library and own_decoder(library, kind)
    if not decoder:
        with np.errstate(all="ignore"):
            decoded = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.number))
        return torch.from_numpy(np.ascontiguousarray(decoded, dtype=np.float32))
    rows, row_bytes = blocks.shape
    blocks = blocks.contiguous()
    columns = row_bytes // kind.block_bytes * kind.block
    if row_bytes != kind.row_bytes(columns):
        raise ValueError(f"{row_bytes} bytes are not a row of {kind.name}")
    out = torch.empty(rows, columns)

    def run(start: int, stop: int) -> None:
        decoder(blocks[start:].data_ptr(), out[start:].data_ptr(), stop - start, columns)

    native.over_rows(run, rows, threads=threads)
    return out


def own_decoder(library: ctypes.CDLL, kind: GgmlType) -> Decoder | None:
    """Our decoder of a type in one of our libraries, or None where there is none."""
    function = getattr(library, f"gq_dequantize_{kind.name.lower()}", None)
    if function is None:
        return None
    function.argtypes, function.restype = _DECODER_ARGUMENTS, None
    decoder: Decoder = function
    return decoder
