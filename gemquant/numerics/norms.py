"""Scales that fold into Gemma's (1 + w) norms, exactly, after the norm is rounded."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_into_norm(weight: Tensor, scale: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Divide a norm's gain by ``scale`` and say by what the stored norm really divides.

    Gemma multiplies by 1 + w, so w' = (1 + w) / scale − 1. Stored in a short type w' loses
    precision where the gain is small; the scale that the rounded norm implements,
    (1 + w) / (1 + w'), is therefore returned for the weights behind it, and norm and weights agree
    exactly. A channel whose gain is zero, or would round to zero, keeps its weight and a scale of
    one.

    weight, scale: (channels,) float32. Returns the rounded norm weight and the effective scale.
    """
    gain = 1 + weight
    folded = (gain / scale - 1).to(dtype).float()
    effective = gain / (1 + folded)
    kept = weight.to(dtype).float()
    sound = torch.isfinite(effective) & (effective > 0)
    # A channel left alone must still agree with the norm as it is stored.
    kept_scale = torch.where(1 + kept != 0, gain / (1 + kept), torch.ones_like(gain))
    kept_scale = torch.where(kept_scale > 0, kept_scale, torch.ones_like(gain))
    return torch.where(sound, folded, kept), torch.where(sound, effective, kept_scale)
