"""A PEFT LoRA adapter, merged into the weights tensor by tensor while they are read.

The merged weight is W + s · B · A with s = alpha / r, or alpha / √r for rsLoRA, in float32.

Source: Hu et al., 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski, 2023,
https://arxiv.org/abs/2312.03732; peft ``tuners/lora``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """One linear's update: scale · b @ a. a: (r, in), b: (out, r), float32."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class LoraAdapter:
    """Updates by the full name of the weight that they change."""

    files: Sequence[Path]
    updates: Mapping[str, LowRank]

    def changes(self, name: str) -> bool:
        """Whether the adapter has an update for this tensor."""
        return name in self.updates

    def merged_rows(self, name: str, base: Tensor, start: int) -> Tensor:
        """Add the update to rows of a weight. base: (rows, in) float32, its first row ``start``."""
        update = self.updates[name]
        rows = update.b[start : start + base.shape[0]]
        return torch.addmm(base, rows, update.a, alpha=update.scale)
