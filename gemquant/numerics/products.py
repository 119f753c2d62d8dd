"""Float32 products by the faster of torch's two libraries, where it is as exact.

On AMD processors MKL stays with AVX2; oneDNN uses AVX-512 and was measured at 2.2 times the speed.
torch hands products to oneDNN only when they may be rounded to bfloat16 on the way. Whether they
then are depends on the processor (those with AMX do it), so it is found out by trying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

# A float32 product of this size is exact to 1e-6 of its largest entry, one in bfloat16 to 1e-3.
TOLERANCE = 1e-5


@contextmanager
def fast_products() -> Iterator[None]:
    """Use oneDNN for float32 products on the CPU while the context is open, if that is exact."""
    settings: Any = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision") or not _is_exact():
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@cache
def _is_exact() -> bool:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined,unused-ignore]
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(256, 512, generator=generator)
    right = torch.randn(512, 256, generator=generator)
    expected = left.double() @ right.double()
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        error = ((left @ right).double() - expected).abs().max() / expected.abs().max()
    finally:
        settings.fp32_precision = before
    return bool(error < TOLERANCE)
