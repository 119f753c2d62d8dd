"""The kernel of ``source/gram.c`` on torch tensors."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from gemquant.numerics import native

PANEL = 64  # columns; WIDTH in the source


@cache
def has_bfloat16_products() -> bool:
    """Whether this processor multiplies pairs of bfloat16 numbers, and the kernel was built."""
    kernels = native.library()
    return kernels is not None and bool(kernels.gq_has_bfloat16_products())


def add_gram(gram: Tensor, inputs: Tensor) -> None:
    """Add Σ x xᵀ to the upper half of ``gram``; values below its diagonal panels are undefined.

    gram: (columns, columns) float32, contiguous. inputs: (tokens, columns) bfloat16, on the CPU.
    """
    inputs = inputs.contiguous()
    tokens, columns = inputs.shape
    panels, pairs, threads = -(-columns // PANEL), -(-tokens // 2), torch.get_num_threads()
    packed = torch.empty(panels * pairs * PANEL, dtype=torch.int32)

    def pack(first: int, last: int) -> None:
        native.call("gq_gram_pack", inputs, tokens, columns, first, last, packed)

    def add(first: int, last: int) -> None:
        native.call("gq_gram_add", packed, pairs, columns, first, last, gram)

    native.over_rows(pack, panels, threads=threads)
    native.over_rows(add, panels * (panels + 1) // 2, threads=threads)
