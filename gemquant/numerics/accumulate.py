"""The type that long sums are kept in."""

from __future__ import annotations

import torch


def accumulator(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64
