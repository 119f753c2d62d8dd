"""Floating-point tensors in a narrower type, refused where a value does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError


def narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the stored type; the same tensor where nothing needs converting.

    UnsupportedError, by the tensor's name, if a finite value becomes infinite.
    """
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        largest = tensor.abs().max().item()
        raise UnsupportedError(
            f"{name} holds {largest:g}; the largest {str(dtype).removeprefix('torch.')} is "
            f"{torch.finfo(dtype).max:g}.",
            hint="Store bfloat16: another container, or gemquant cast --dtype bfloat16.",
        )
    return converted
