"""Ggml's blocks back to numbers."""

from __future__ import annotations

import gguf
import torch
from torch import Tensor

from gemquant.numerics.ggml.types import GgmlType


def dequantize_rows(blocks: Tensor, kind: GgmlType) -> Tensor:
    """Decode (rows, bytes of a row) uint8 to (rows, columns) float32."""
    decoded = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.number))
    return torch.from_numpy(decoded).to(torch.float32)
