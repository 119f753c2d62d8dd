"""AWQ: scale the channels that matter, search each group's range, make up for every error.

Source: Lin et al., 2023, https://arxiv.org/abs/2306.00978. All three steps price errors by the Gram
matrix of a linear's inputs, so their cost does not depend on the number of calibration tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.options import option
from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.models.structure import EMBEDDING, embedding_structure
from gemquant.quantizers.affine_options import AffineOptions
from gemquant.quantizers.rounding import nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AWQ(AffineOptions):
    """Few-bit weights, scaled so that salient channels lose least, errors compensated."""

    name: ClassVar[str] = "awq"
    needs: ClassVar[frozenset[str]] = frozenset({"moments", "gram"})

    scale: bool = option(True, "Search activation-aware scales and fold them away.")
    clip: bool = option(True, "Search each group's range instead of covering all of it.")
    compensate: bool = option(True, "Round each column to make up for the errors before it.")
    refinements: int = option(
        1, "Passes that revisit every code after compensation.", minimum=0, maximum=20
    )

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor | AffineWeight]:
        """Scale, clip, round and compensate one decoder layer; round rows of the embedding."""
        if block.structure == embedding_structure():
            # Nothing multiplies it, so no activations say what matters: rounded to nearest.
            weight = block.weights[EMBEDDING]
            scheme = AffineScheme(self.bits, self.group_size, self.symmetric)
            return {EMBEDDING: nearest(weight, scheme, container)}
        from gemquant.quantizers.awq_layer import quantize_layer

        return quantize_layer(self, block, container)
