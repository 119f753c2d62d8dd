"""Round to nearest: the baseline that every other quantizer must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.protocols import AffineScheme, AffineWeight, Block, Container
from gemquant.quantizers.options import AffineOptions
from gemquant.quantizers.qat import carried_weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RoundToNearest(AffineOptions):
    """Round to nearest: the baseline."""

    name: ClassVar[str] = "rtn"
    needs: ClassVar[frozenset[str]] = frozenset()

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor | AffineWeight]:
        """Round every linear of the block; where biases are stored, exactly as MLX does."""
        return rounded_block(self, block, container)


def rounded_block(
    options: AffineOptions, block: Block, container: Container
) -> Mapping[str, Tensor | AffineWeight]:
    """Round the linears of a block to nearest, each in its scheme."""
    quantized: dict[str, Tensor | AffineWeight] = {}
    for linear in block.structure.linears:
        name = f"{linear}.weight"
        weight = block.weights[name]
        scheme = options.scheme_for(block.prefix + name, (weight.shape[0], weight.shape[1]))
        if scheme is not None:
            quantized[name] = rounded(options, block.prefix + name, weight, scheme, container)
    return quantized


def rounded(
    options: AffineOptions, name: str, weight: Tensor, scheme: AffineScheme, container: Container
) -> AffineWeight:
    """Carry over (out, in) where it lies on a grid, by its full name; round the rest to nearest."""
    nearest = partial(round_to_nearest, weight, scheme, container)
    share = options.grid_use.carried.get(name)
    return carried_weight(weight, scheme, container, share, nearest) if share else nearest()


def round_to_nearest(weight: Tensor, scheme: AffineScheme, container: Container) -> AffineWeight:
    """Round (out, in) to nearest; where biases are stored, exactly as MLX does."""
    import torch

    from gemquant.numerics.affine import AffineRounding, quantize_affine
    from gemquant.numerics.mlx_affine import quantize_anchored, zero_points_of

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
