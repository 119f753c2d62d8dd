"""Rows of weights to ggml's blocks, the same bytes as ``ggml_quantize_chunk``, and back.

The kernels are named after the types, and write what ggml does as compiled for x86-64, on every
processor: 64-bit ARM's ggml is usually compiled with fused products and sums, and differs in a
small share of bytes. Without kernels numpy writes the same bytes, in 8 to 25 times the time.

    void gq_quantize_q4_k(const float *x, uint8_t *out, int64_t rows, int64_t columns,
                          const float *importance);  // (columns,) or NULL
    void gq_dequantize_q4_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns);
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from gemquant.numerics import ggml_fallback, native
from gemquant.numerics.ggml_types import GgmlType

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def quantize_rows(
    weight: Tensor, kind: GgmlType, *, importance: Tensor | None = None, threads: int = 1
) -> Tensor:
    """Quantize a weight (rows, columns) float32 row by row, as llama.cpp's own tools would.

    columns: whole blocks of ``kind``. importance: (columns,) float32, how much each column's error
    counts; floating-point types ignore it.
    Returns (rows, bytes of a row) uint8, the same for any number of threads.
    """
    rows, columns = weight.shape
    weight = weight.contiguous()
    if kind.is_float:
        return weight.to(_FLOATS[kind.name]).view(torch.uint8).view(rows, -1)
    out = torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8)
    weights = None if importance is None else importance.to(torch.float32).contiguous()

    def run(start: int, stop: int) -> None:
        x, to = weight[start:stop], out[start:stop]
        if native.library() is not None:
            native.call(f"gq_quantize_{kind.name.lower()}", x, to, stop - start, columns, weights)
        else:
            w = None if weights is None else weights.numpy()
            to[:] = torch.from_numpy(ggml_fallback.quantize(kind.name, x.numpy(), w))

    native.over_rows(run, rows, threads=threads)
    return out


def dequantize_rows(blocks: Tensor, kind: GgmlType, *, threads: int = 1) -> Tensor:
    """Decode (rows, bytes of a row) uint8 to (rows, columns) float32.

    A damaged block decodes to infinity or NaN, without a warning. Without kernels the gguf package
    decodes, to the same bits.
    """
    if kind.is_float or native.library() is None:
        with np.errstate(all="ignore"):
            decoded = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.number))
        return torch.from_numpy(np.ascontiguousarray(decoded, dtype=np.float32))
    rows, row_bytes = blocks.shape
    blocks = blocks.contiguous()
    columns = row_bytes // kind.block_bytes * kind.block
    if row_bytes != kind.row_bytes(columns):
        raise ValueError(f"{row_bytes} bytes are not a row of {kind.name}")
    out = torch.empty(rows, columns)
    name = f"gq_dequantize_{kind.name.lower()}"

    def run(start: int, stop: int) -> None:
        native.call(name, blocks[start:stop], out[start:stop], stop - start, columns)

    native.over_rows(run, rows, threads=threads)
    return out
