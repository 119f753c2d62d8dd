"""The largest activation of a model, against what float16 can hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemquant.core.protocols import ActivationRange


@dataclass
class ActivationRanges:
    """The largest magnitude of every decoder layer's activations and where it occurred.

    layers: by layer index. What a module computes inside itself, such as attention scores, is not
    seen.
    """

    layers: dict[int, ActivationRange] = field(default_factory=dict)

    def observer(self, index: int, prefix: str) -> ActivationObserver:
        """An observer for ``Skeleton.observing`` at one layer."""
        return ActivationObserver(self, index, prefix)

    def worst(self) -> tuple[float, str]:
        """The largest magnitude of all layers and where it occurred."""
        return max(((r.largest, r.where) for r in self.layers.values()), default=(0.0, ""))


@dataclass
class ActivationObserver:
    """Sees the outputs of every module of one layer; call ``close`` after the last window.

    seen: by the module's short name; the layer's own output under the empty one.
    """

    ranges: ActivationRanges
    index: int
    prefix: str
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, module: str, output: Tensor) -> None:
        """Note the magnitude of an output, without waiting for the device."""
        low, high = torch.aminmax(output)
        largest = torch.maximum(-low, high)
        before = self.seen.get(module)
        self.seen[module] = largest if before is None else torch.maximum(before, largest)

    def close(self) -> ActivationRange:
        """Record this layer's range."""
        largest, where = max(
            (float(value), (self.prefix + module).rstrip("."))
            for module, value in self.seen.items()
        )
        residual = float(self.seen.get("", torch.tensor(0.0)))
        self.ranges.layers[self.index] = ActivationRange(residual, largest, where)
        return self.ranges.layers[self.index]
