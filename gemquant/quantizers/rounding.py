"""Rounding to the nearest code: all that is left where there is nothing to search with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemquant.core.protocols import AffineScheme, AffineWeight, Container

if TYPE_CHECKING:
    from torch import Tensor


def nearest(weight: Tensor, scheme: AffineScheme, container: Container) -> AffineWeight:
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
