"""Round to nearest as MLX does: the end of a group's range that is farther from zero is exact.

w ≈ scale · code + bias. The bias is the end of the range with the larger magnitude, and the scale's
sign points from it to the other end; the scale is then stretched so that zero is a code, where the
range is not so narrow that this would need a scale of zero. Codes are chosen by the scale and
bias in float32, before these are rounded to the type they are stored in, and at 8 bits the steps
are as fine as bfloat16's. Squared error of heavy-tailed weights in groups of 64, over that of whole
zero points, which are stored exactly (2048 × 1024 weights):

    bits                                          2     3     4     6     8
    this rule                                  0.94  0.99  1.00  1.05  1.90
    bias of a zero point, codes chosen before  1.00  1.00  1.00  1.04  1.55
    the same, codes chosen after               1.00  1.00  1.00  1.00  1.00

The last is ``AffineRounding(biased=True)``, for quantizers that choose codes freely; this rule
makes files equal to MLX's own.

Source: the behaviour of ``mlx.core.quantize`` (mlx 0.32), mode affine.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-7


def quantize_anchored(
    weight: Tensor, *, bits: int, group_size: int, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest, each group covering its own range.

    weight: (out, in) float32, in divisible by ``group_size``.
    Returns codes (out, in) uint8; scales, biases (out, in / group_size) in ``scale_dtype``.
    """
    largest_code = 2**bits - 1
    grouped = weight.unflatten(1, (-1, group_size))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales = ((high - low) / largest_code).clamp(min=SMALLEST_SCALE)
    from_below = low.abs() > high.abs()
    scales = torch.where(from_below, scales, -scales)
    biases = torch.where(from_below, low, high)
    steps_to_zero = torch.round(biases / scales)
    scales = torch.where(steps_to_zero == 0, scales, biases / steps_to_zero)
    biases = torch.where(steps_to_zero == 0, torch.zeros_like(biases), biases)
    codes = torch.round((grouped - biases[..., None]) / scales[..., None])
    codes = codes.clamp_(0, largest_code).flatten(1).to(torch.uint8)
    return codes, scales.to(scale_dtype), biases.to(scale_dtype)


def zero_points_of(scales: Tensor, biases: Tensor) -> Tensor:
    """Return the real numbers at which codes mean zero: −bias / scale, float32.

    >>> zero_points_of(torch.tensor([0.5]), torch.tensor([-3.25]))
    tensor([6.5000])
    """
    return -biases.float() / scales.float()


def biases_of(scales: Tensor, zero_points: Tensor) -> Tensor:
    """Undo zero_points_of, in the type of the scales; without loss for a bias of that type.

    Both roundings to float32 together stay far below half a step of a 16-bit type.

    >>> biases_of(torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor([6.5]))
    tensor([-3.2500], dtype=torch.bfloat16)
    """
    # A zero point of zero is a bias of +0, whatever the scale's sign.
    return (-zero_points.float() * scales.float() + 0.0).to(scales.dtype)


def dequantize(codes: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    """Return scale · code + bias in the order in which a loader computes it, (out, in) float32.

    codes: (out, in) uint8. scales, zero_points: (out, groups), as ``biases_of`` takes them.
    """
    grouped = codes.unflatten(1, (scales.shape[1], -1)).float()
    grouped = grouped.mul_(scales.float()[..., None])
    biases = biases_of(scales, zero_points).float()
    decoded: Tensor = grouped.add_(biases[..., None]).flatten(1)
    return decoded
