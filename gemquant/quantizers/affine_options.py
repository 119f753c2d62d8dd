"""What the quantizers to integers share: their scheme, and which layers it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemquant.core.options import option
from gemquant.core.protocols import AffineScheme
from gemquant.errors import GemquantError
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.quantizers.linears import BITS, GROUP_SIZES, indivisible, is_skipped, unused_patterns


@dataclass(frozen=True)
class AffineOptions:
    """One affine scheme for every decoder linear, and for the head if asked."""

    bits: int = option(4, "Bits per weight.", choices=BITS)
    group_size: int = option(
        128, "Input channels that share one scale; -1 for a whole channel.", choices=GROUP_SIZES
    )
    symmetric: bool = option(False, "Fix the zero point at the middle instead of storing one.")
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")
    quantize_head: bool = option(False, "Quantize the head too, untied from the embedding.")
    quantize_embedding: bool = option(
        False, "Quantize the embedding too, and with it a head that is tied to it (mlx)."
    )

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:  # noqa: ARG002
        """The one scheme, unless the layer is to be skipped; the tables only when asked."""
        asked = {EMBEDDING: self.quantize_embedding, HEAD: self.quantize_head}
        if not asked.get(name, True) or is_skipped(name, self.skip):
            return None
        return AffineScheme(self.bits, self.group_size, self.symmetric)

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Layers that the group size does not divide; patterns that name nothing."""
        return [
            *indivisible(linears, self.group_size, self.skip),
            *unused_patterns(linears, self.skip),
        ]
