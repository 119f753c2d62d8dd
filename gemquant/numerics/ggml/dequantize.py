"""Decode ggml's blocks: with our kernels where they are built, else with the gguf package.

Both give the same bits. Kernels are looked up by name, like those that quantize (``kernels``):

    void gq_dequantize_q4_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns);
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import gguf
import numpy as np
import torch
from torch import Tensor

from gemquant.numerics import native
from gemquant.numerics.ggml.types import GgmlType

Decoder = Callable[[int, int, int, int], object]
"""Addresses of blocks and numbers, rows, columns."""

_ARGUMENTS = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]


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
    function.argtypes, function.restype = _ARGUMENTS, None
    decoder: Decoder = function
    return decoder
