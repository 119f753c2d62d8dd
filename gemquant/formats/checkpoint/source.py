"""What a checkpoint reads its tensors from: safetensors files, or a GGUF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gemquant.errors import CheckpointError


class TensorSource(Protocol):
    """Named tensors in files, decoded on request; nothing is read before."""

    @property
    def files(self) -> Sequence[Path]:
        """The weight files."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes from headers alone."""

    def stored_dtype(self, name: str) -> torch.dtype:
        """The floating-point type that holds the tensor without loss."""

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` (elements of a vector) in ``dtype``; may alias a mapping."""


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise CheckpointError if the tensor holds a NaN or an infinity."""
    if tensor.numel() == 0:
        return
    # One pass without a temporary: the smallest and largest value carry any NaN or infinity.
    low, high = torch.aminmax(tensor)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = tensor.numel() - sum(
            int(chunk.isfinite().count_nonzero()) for chunk in torch.split(tensor, 1024)
        )
        raise CheckpointError(
            f"{what}: {bad} of {tensor.numel()} values are NaN or infinite.",
            hint="Download the checkpoint again; if it stays, the model itself is broken.",
        )
