"""Floating-point types: accumulators of sums, narrowing without overflow, fast exact products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError

# A float32 product of this size is exact to 1e-6 of its largest entry, one in bfloat16 to 1e-3.
TOLERANCE = 1e-5


def accumulator(device: torch.device) -> torch.dtype:
    """Type for long sums: float64, or float32 on Apple GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the stored type; the same tensor where nothing needs converting.

    UnsupportedError, with the tensor's name, if a finite value becomes infinite.
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


@contextmanager
def fast_products() -> Iterator[None]:
    """Use oneDNN for float32 products on the CPU while the context is open, if that is exact.

    On AMD processors MKL stays with AVX2; oneDNN uses AVX-512 and was measured at 2.2 times the
    speed. torch hands products to oneDNN only when they may be rounded to bfloat16. Whether they
    then are depends on the processor (those with AMX do it), so one product is tried first.
    """
    settings: Any = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision") or not _is_exact():
        yield
        return
    previous = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = previous


@cache
def _is_exact() -> bool:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined,unused-ignore]
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(256, 512, generator=generator)
    right = torch.randn(512, 256, generator=generator)
    expected = left.double() @ right.double()
    previous = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        error = ((left @ right).double() - expected).abs().max() / expected.abs().max()
    finally:
        settings.fp32_precision = previous
    return bool(error < TOLERANCE)
