"""Round to nearest: the baseline that every other quantizer must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.errors import GemquantError
from gemquant.gemma.structure import EMBEDDING, HEAD
from gemquant.options import option
from gemquant.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.quantizers.linears import BITS, GROUP_SIZES, indivisible, is_skipped, unused_patterns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RoundToNearest:
    """Weights rounded to the nearest code, without calibration."""

    name: ClassVar[str] = "rtn"
    needs: ClassVar[frozenset[str]] = frozenset()

    bits: int = option(4, "Bits per weight.", choices=BITS)
    group_size: int = option(
        128, "Input channels that share one scale; -1 for a whole channel.", choices=GROUP_SIZES
    )
    symmetric: bool = option(False, "Fix the zero point at the middle instead of storing one.")
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")
    quantize_head: bool = option(False, "Quantize the head too, untied from the embedding.")

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:  # noqa: ARG002
        """The one scheme, unless the layer is to be skipped; the head only when asked."""
        if name == EMBEDDING or (name == HEAD and not self.quantize_head):
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
        """Round every linear of the block; where biases are stored, exactly as MLX does."""
        quantized: dict[str, Tensor | AffineWeight] = {}
        for linear in block.structure.linears:
            name = f"{linear}.weight"
            weight = block.weights[name]
            scheme = self.scheme_for(block.prefix + name, (weight.shape[0], weight.shape[1]))
            if scheme is None:
                continue
            quantized[name] = self._rounded(weight, scheme, container)
        return quantized

    def _rounded(self, weight: Tensor, scheme: AffineScheme, container: Container) -> AffineWeight:
        import torch

        from gemquant.numerics.affine import AffineRounding, quantize_affine
        from gemquant.numerics.anchored import quantize_anchored, zero_points_of

        if container.biases and not scheme.symmetric:
            codes, scales, biases = quantize_anchored(
                weight,
                bits=scheme.bits,
                group_size=scheme.group_size,
                scale_dtype=container.scale_dtype,
            )
            return AffineWeight(scheme, codes, scales, zero_points_of(scales, biases))
        rounding = AffineRounding(scheme.bits, scheme.symmetric, container.scale_dtype)
        codes, scales, zero_points = quantize_affine(
            weight, rounding=rounding, group_size=scheme.group_size
        )
        return AffineWeight(
            scheme, codes, scales.to(container.scale_dtype), zero_points.to(torch.uint8)
        )
