"""Rows of weights to ggml's blocks: the same bytes as ``ggml_quantize_chunk``."""

from __future__ import annotations

import torch
from torch import Tensor

from gemquant.errors import RuntimeMissingError
from gemquant.numerics.ggml.kernels import kernel_of
from gemquant.numerics.ggml.types import GgmlType
from gemquant.numerics.native import over_rows

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

    over_rows(run, rows, threads=threads)
    return out
