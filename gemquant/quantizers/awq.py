"""AWQ: scale the channels that matter, search each group's range, make up for every error.

Source: Lin et al., 2023, https://arxiv.org/abs/2306.00978. All three steps price errors by the Gram
matrix of a linear's inputs, so their cost does not depend on the number of calibration tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.errors import GemquantError
from gemquant.gemma.structure import EMBEDDING, HEAD, embedding_structure
from gemquant.options import option
from gemquant.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.quantizers.linears import BITS, GROUP_SIZES, indivisible, is_skipped, unused_patterns
from gemquant.quantizers.rounding import nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AWQ:
    """Few-bit weights, scaled so that salient channels lose least, errors compensated."""

    name: ClassVar[str] = "awq"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "gram"})

    bits: int = option(4, "Bits per weight.", choices=BITS)
    group_size: int = option(
        128, "Input channels that share one scale; -1 for a whole channel.", choices=GROUP_SIZES
    )
    symmetric: bool = option(False, "Fix the zero point at the middle instead of storing one.")
    scale: bool = option(True, "Search activation-aware scales and fold them away.")
    clip: bool = option(True, "Search each group's range instead of covering all of it.")
    compensate: bool = option(True, "Round each column to make up for the errors before it.")
    refinements: int = option(
        1, "Passes that revisit every code after compensation.", minimum=0, maximum=20
    )
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")
    quantize_head: bool = option(False, "Quantize the head too, untied from the embedding.")
    quantize_embedding: bool = option(
        False, "Quantize the embedding too, and with it a head that is tied to it (mlx)."
    )

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:  # noqa: ARG002
        """The one scheme, unless the layer is to be skipped; the tables only when asked."""
        asked = {EMBEDDING: self.quantize_embedding, HEAD: self.quantize_head}
        if not asked.get(name, True):
            return None
        if is_skipped(name, self.skip):
            return None
        return AffineScheme(self.bits, self.group_size, self.symmetric)

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Layers that the group size does not divide; patterns that name nothing."""
        return [
            *indivisible(linears, self.group_size, self.skip),
            *unused_patterns(linears, self.skip),
        ]

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor | AffineWeight]:
        """Scale, clip, round and compensate one decoder layer; round rows of the embedding."""
        if block.structure == embedding_structure():
            # Nothing multiplies it, so no activations say what matters: rounded to nearest.
            weight = block.weights[EMBEDDING]
            scheme = AffineScheme(self.bits, self.group_size, self.symmetric)
            return {EMBEDDING: nearest(weight, scheme, container)}
        from gemquant.quantizers.awq_layer import quantize_layer

        return quantize_layer(self, block, container)
