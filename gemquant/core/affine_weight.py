"""The commonest kind of quantized weight: integer codes with scales and zero points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from gemquant.core.scheme import INTEGER, PER_CHANNEL

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AffineScheme:
    """How a linear layer's numbers are stored: w ≈ scale · (code − zero_point).

    group_size: input channels that share a scale, or PER_CHANNEL for the whole row.
    symmetric: the zero point is fixed at 2**(bits − 1) and not stored.
    """

    bits: int
    group_size: int
    symmetric: bool

    @property
    def codes(self) -> str:
        """Integers."""
        return INTEGER

    def groups(self, columns: int) -> int:
        """Number of groups in a row of ``columns`` input channels."""
        return 1 if self.group_size == PER_CHANNEL else columns // self.group_size


@dataclass(frozen=True)
class AffineWeight:
    """A quantized linear weight; satisfies ``Stackable``.

    codes: (out, in) uint8. scales: (out, groups) in the container's type.
    zero_points: (out, groups) uint8, also where the scheme is symmetric; float32 and not whole
    where the container stores biases.
    """

    scheme: AffineScheme
    codes: Tensor
    scales: Tensor
    zero_points: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    def rows(self, start: int, stop: int) -> AffineWeight:
        """Output channels ``start`` to ``stop``."""
        part = slice(start, stop)
        return AffineWeight(
            self.scheme, self.codes[part], self.scales[part], self.zero_points[part]
        )

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self:
        """Stack weights of one scheme along their output channels."""
        import torch

        return cls(
            parts[0].scheme,
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat([part.zero_points for part in parts]),
        )

    def dequantize(self) -> Tensor:
        """Return scale · (code − zero_point) as float32, (out, in)."""
        from gemquant.numerics import affine
        from gemquant.numerics import mlx_affine as anchored

        if self.zero_points.is_floating_point():
            return anchored.dequantize(self.codes, self.scales, self.zero_points)
        return affine.dequantize(self.codes, self.scales, self.zero_points)
