"""Affine quantization: w ≈ scale · (code − zero_point), with the rounding of a stored scale.

A scale is rounded to the type it will be stored in *before* the codes are chosen, so that the codes
are right for the numbers that a loader will read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineRounding:
    """The rules of one affine format.

    bits: codes run from 0 to 2**bits − 1.
    symmetric: the zero point is 2**(bits − 1), whatever the weights.
    scale_dtype: type that scales are stored in.
    biased: the format stores scale · code + bias, with the bias in the scale's type. The zero point
        is then −bias / scale of the rounded bias, and no longer whole; codes that are chosen with
        it compensate that rounding.
    """

    bits: int
    symmetric: bool
    scale_dtype: torch.dtype
    biased: bool = False

    @property
    def largest_code(self) -> int:
        """2**bits − 1."""
        return int(2**self.bits - 1)

    @property
    def _scale_range(self) -> tuple[float, float]:
        """Smallest and largest scale: float16's subnormals count, or small weights would vanish."""
        stored = torch.finfo(self.scale_dtype)
        smallest = stored.smallest_normal * stored.eps
        return max(smallest, torch.finfo(torch.float32).smallest_normal), stored.max

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that cover [low, high], both float32 and of the shape of ``low``.

        The range is first widened to hold zero, which every affine format represents exactly.
        A scale that its type cannot hold becomes the nearest that it can, never zero or infinite.
        """
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            width = 2 * torch.maximum(-low, high)
        else:
            width = high - low
        width = torch.where(width > 0, width, torch.full_like(width, float(self.largest_code)))
        scales = (width / self.largest_code).clamp(*self._scale_range).to(self.scale_dtype).float()
        if self.symmetric:
            return scales, torch.full_like(scales, float(2 ** (self.bits - 1)))
        zero_points = torch.round(-low / scales).clamp_(0, self.largest_code)
        if self.biased:
            zero_points = (zero_points * scales).to(self.scale_dtype).float() / scales
        return scales, zero_points

    def encode(self, values: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Nearest codes, as float32; scales and zero points broadcast against ``values``."""
        return self._codes(values / scales, zero_points)

    def error(self, values: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Rounding error in units of the scale: code − zero_point − value / scale."""
        steps = values / scales
        return self._codes(steps, zero_points).sub_(zero_points).sub_(steps)

    def _codes(self, steps: Tensor, zero_points: Tensor) -> Tensor:
        """Nearest codes of values in units of the scale."""
        if self.biased:
            codes = (steps + zero_points).round_()
        else:
            codes = torch.round(steps).add_(zero_points)
        return codes.clamp_(0, self.largest_code)


def group_width(columns: int, group_size: int) -> int:
    """Columns per group: the group size, or the whole row where the group size is −1."""
    return columns if group_size == -1 else group_size


def quantize_affine(
    weight: Tensor, *, rounding: AffineRounding, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest, each group covering its own range.

    weight: (out, in), in divisible by ``group_size`` (−1: the whole row).
    Returns codes (out, in) uint8; scales, zero points (out, in / group_size) float32.
    """
    grouped = weight.unflatten(1, (-1, group_width(weight.shape[1], group_size)))
    scales, zero_points = rounding.parameters(grouped.amin(-1), grouped.amax(-1))
    codes = rounding.encode(grouped, scales[..., None], zero_points[..., None])
    return codes.flatten(1).to(torch.uint8), scales, zero_points


def dequantize(codes: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    """Return scale · (code − zero_point), (out, in) float32.

    codes: (out, in) uint8. scales, zero_points: (out, groups).
    """
    grouped = codes.unflatten(1, (scales.shape[1], -1)).float()
    grouped = grouped - zero_points.float()[..., None]
    decoded: Tensor = grouped.mul_(scales.float()[..., None]).flatten(1)
    return decoded
