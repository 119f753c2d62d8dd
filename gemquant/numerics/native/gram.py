"""The kernel of ``source/gram.c`` on torch tensors."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from gemquant.numerics.native import library, over_rows

PANEL = 64  # columns; WIDTH in the source


@cache
def has_bfloat16_products() -> bool:
    """Whether this processor multiplies pairs of bfloat16 numbers, and the kernel was built."""
    kernels = library()
    return kernels is not None and bool(kernels.gq_has_bfloat16_products())


def add_gram(gram: Tensor, inputs: Tensor) -> None:
    """Add Σ x xᵀ to the upper half of ``gram``; values below its diagonal panels are undefined.

    gram: (columns, columns) float32, contiguous. inputs: (tokens, columns) bfloat16, on the CPU.
    """
    kernels = library()
    assert kernels is not None, "call has_bfloat16_products() first"
    inputs = inputs.contiguous()
    tokens, columns = inputs.shape
    panels, pairs, threads = -(-columns // PANEL), -(-tokens // 2), torch.get_num_threads()
    packed = torch.empty(panels * pairs * PANEL, dtype=torch.int32)

    def pack(first: int, last: int) -> None:
        kernels.gq_gram_pack(
            ctypes.c_void_p(inputs.data_ptr()),
            *map(ctypes.c_int64, (tokens, columns, first, last)),
            ctypes.c_void_p(packed.data_ptr()),
        )

    def add(first: int, last: int) -> None:
        kernels.gq_gram_add(
            ctypes.c_void_p(packed.data_ptr()),
            *map(ctypes.c_int64, (pairs, columns, first, last)),
            ctypes.c_void_p(gram.data_ptr()),
        )

    over_rows(pack, panels, threads=threads)
    over_rows(add, panels * (panels + 1) // 2, threads=threads)
