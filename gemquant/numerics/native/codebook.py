"""The kernel of ``source/codebook.c`` on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gemquant.numerics.native import library, over_rows

BLOCKS_PER_RUN = 256
WIDTH = 64  # a block is a multiple of this; RUN in the source


def is_usable(flat: Tensor, block_size: int) -> bool:
    """Whether the kernel can work on blocks of this size, on this tensor's device."""
    return flat.device.type == "cpu" and block_size % WIDTH == 0 and library() is not None


def quantize_blocks(
    flat: Tensor,
    packed: Tensor,
    scales: Tensor,
    *,
    block_size: int,
    thresholds: Sequence[float],
    pairs: Tensor,
    smallest_scale: float,
) -> None:
    """Quantize whole blocks of ``flat`` (elements,) float32; write packed codes and scales.

    thresholds: 15, ascending. pairs: (256,) uint8, two ranks among the values → two codes.
    """
    kernels = library()
    assert kernels is not None, "call is_usable() first"
    edges = (ctypes.c_float * 15)(*thresholds)
    flat, pairs = flat.contiguous(), pairs.contiguous()

    def run(first: int, last: int) -> None:
        kernels.gq_codebook(
            ctypes.c_void_p(flat.data_ptr()),
            ctypes.c_int64(block_size),
            edges,
            ctypes.c_void_p(pairs.data_ptr()),
            ctypes.c_float(smallest_scale),
            ctypes.c_int64(first),
            ctypes.c_int64(last),
            ctypes.c_void_p(packed.data_ptr()),
            ctypes.c_void_p(scales.data_ptr()),
        )

    blocks = flat.numel() // block_size
    over_rows(run, blocks, threads=torch.get_num_threads(), at_least=BLOCKS_PER_RUN)
