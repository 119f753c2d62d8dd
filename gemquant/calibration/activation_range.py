"""The largest activation of a model, against what float16 can hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FLOAT16_LIMIT = float(torch.finfo(torch.float16).max)


@dataclass
class ActivationRangeScan:
    """Keeps the largest magnitude of every decoder layer's outputs and where it occurred.

    largest: layer index → (magnitude, module). The residual stream is the layer's own output.
    """

    largest: dict[int, tuple[float, str]] = field(default_factory=dict)

    def observer(self, index: int, prefix: str) -> ActivationObserver:
        """An observer for ``Skeleton.observing`` at one layer."""
        return ActivationObserver(self, index, prefix)

    def worst(self) -> tuple[float, str]:
        """The largest magnitude of all layers and the module whose output it was."""
        return max(self.largest.values(), default=(0.0, ""))


@dataclass
class ActivationObserver:
    """Sees the outputs of every module of one layer; call ``close`` after the last window."""

    scan: ActivationRangeScan
    index: int
    prefix: str
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, module: str, output: Tensor) -> None:
        """Note the magnitude of an output, without waiting for the device."""
        low, high = torch.aminmax(output)
        largest = torch.maximum(-low, high)
        before = self.seen.get(module)
        self.seen[module] = largest if before is None else torch.maximum(before, largest)

    def close(self) -> None:
        """Record this layer's largest magnitude."""
        self.scan.largest[self.index] = max(
            (float(value), (self.prefix + module).rstrip("."))
            for module, value in self.seen.items()
        )
