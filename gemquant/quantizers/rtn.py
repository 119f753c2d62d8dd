"""Round to nearest: the baseline that every other quantizer must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.protocols import AffineWeight, Block, Container
from gemquant.quantizers.affine_options import AffineOptions
from gemquant.quantizers.rounding import nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RoundToNearest(AffineOptions):
    """Weights rounded to the nearest code, without calibration."""

    name: ClassVar[str] = "rtn"
    needs: ClassVar[frozenset[str]] = frozenset()

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor | AffineWeight]:
        """Round every linear of the block; where biases are stored, exactly as MLX does."""
        quantized: dict[str, Tensor | AffineWeight] = {}
        for linear in block.structure.linears:
            name = f"{linear}.weight"
            weight = block.weights[name]
            scheme = self.scheme_for(block.prefix + name, (weight.shape[0], weight.shape[1]))
            if scheme is None:
                continue
            quantized[name] = nearest(weight, scheme, container)
        return quantized
