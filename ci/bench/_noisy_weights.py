"""A model with noise on the linears of some layers, as a worse quantizer would leave them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemquant.core.protocols import Weights


@dataclass(frozen=True)
class NoisyWeights:
    """Weights whose linears have noise added, relative to each matrix's root mean square.

    strengths: by layer; a layer that is not there is as it was.
    """

    inner: Weights
    strengths: Mapping[int, float]
    seed: int

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's."""
        return self.inner.config

    def names(self) -> Sequence[str]:
        """The model's."""
        return self.inner.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The model's."""
        return self.inner.shape(name)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The model's."""
        return self.inner.stored_dtype(name)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """The model's: tables have no noise."""
        return self.inner.rows(name, start, stop, dtype)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor; with noise if it is a linear's of a layer that has some."""
        parts = name.split(".")
        layer = int(parts[2]) if parts[:2] == ["model", "layers"] else -1
        strength = self.strengths.get(layer, 0.0)
        if not strength or not name.endswith("_proj.weight"):
            return self.inner.tensor(name, dtype)
        weight = self.inner.tensor(name, torch.float32)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        source = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
        noise = torch.randn(weight.shape, generator=source)
        made = weight + noise * (strength * weight.square().mean().sqrt())
        return made if dtype is None else made.to(dtype)
