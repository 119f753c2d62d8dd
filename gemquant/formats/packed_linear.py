"""How one container stores one quantized linear: what the writer and the reader share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec, QuantizedWeight


class PackedLinear(Protocol):
    """Stores a quantized weight as tensors ``MODULE.suffix``; suffixes are the keys below."""

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """Shapes and types of the stored tensors, by suffix."""

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced, or would not survive packing."""

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """The stored tensors, by suffix."""

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> QuantizedWeight:
        """Undo pack for rows ``start`` to ``stop`` of the weight."""


def module_of(name: str) -> str:
    """Return the module of a weight: ``model.layers.0.mlp.up_proj``."""
    return name.removesuffix(".weight")


def stored_specs(layout: Layout, packing: PackedLinear | None) -> dict[str, PlainSpec]:
    """Return every tensor that a layout becomes in the file, by its full name there.

    packing: None where nothing in the layout is quantized.
    """
    stored: dict[str, PlainSpec] = {}
    for name, spec in layout.items():
        if isinstance(spec, PlainSpec):
            stored[name] = spec
        else:
            assert packing is not None, name
            parts = packing.specs(spec)
            stored |= {f"{module_of(name)}.{suffix}": part for suffix, part in parts.items()}
    return stored
