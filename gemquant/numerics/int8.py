"""Symmetric 8-bit rounding of weights and of activations, and the products of their codes.

A code is value · 127 / peak rounded to the nearest integer, ties to even; the peak is the largest
absolute value of those that share a scale, and the scale is peak / 127. Weights share one along an
output channel or a group of input channels, activations along a token or all tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from gemquant.numerics.affine import group_width

LARGEST_CODE = 127
Granularity = Literal["token", "tensor"]


@dataclass(frozen=True)
class Int8Weight:
    """A linear's weight. codes: (out, in) int8. scales: (out, in / group) float32."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def rounded(cls, weight: Tensor, group_size: int) -> Int8Weight:
        """Round a weight (out, in); group_size −1 for one scale per output channel."""
        grouped = weight.float().unflatten(1, (-1, group_width(weight.shape[1], group_size)))
        peaks = grouped.abs().amax(-1)
        return cls(_codes(grouped, peaks[..., None]).flatten(1), peaks / LARGEST_CODE)

    def dequantize(self) -> Tensor:
        """Decoded weight, (out, in) float32."""
        grouped = self.codes.unflatten(1, (self.scales.shape[1], -1)).float()
        values: Tensor = grouped * self.scales[..., None]
        return values.flatten(1)


@dataclass(frozen=True)
class Int8Activations:
    """Inputs of a linear. codes: (…, in) int8. scales: float32, one per token, (…, 1)."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def rounded(cls, inputs: Tensor, granularity: Granularity) -> Int8Activations:
        """Round inputs (windows, tokens, in), by each token's maximum or by each window's."""
        peaks = inputs.float().abs().amax(-1, keepdim=True)
        if granularity == "tensor":
            peaks = peaks.amax(-2, keepdim=True).expand_as(peaks)
        return cls(_codes(inputs.float(), peaks), peaks / LARGEST_CODE)

    def dequantize(self) -> Tensor:
        """Decoded inputs, (…, in) float32."""
        return self.codes.float() * self.scales


def linear(inputs: Int8Activations, weight: Int8Weight) -> Tensor:
    """Return inputs · weightᵀ, (…, out) float32.

    Products of codes are summed exactly where one scale covers an output channel and the processor
    has integer products; elsewhere in float32.
    """
    if weight.scales.shape[1] > 1:
        return (inputs.codes.float() @ weight.dequantize().T) * inputs.scales
    flat = inputs.codes.reshape(-1, inputs.codes.shape[-1])
    sums = code_products(flat, weight.codes).reshape(*inputs.codes.shape[:-1], -1)
    return sums.mul_(weight.scales[:, 0]).mul_(inputs.scales)


def code_products(left: Tensor, right: Tensor) -> Tensor:
    """Return left · rightᵀ of int8 codes, (m, k) and (n, k), as float32 (m, n)."""
    if left.device.type == "cpu" and has_integer_products():
        return torch._int_mm(left, right.T).float()  # noqa: SLF001 (it has no other name)
    return left.float() @ right.float().T


@cache
def has_integer_products() -> bool:
    """Whether this processor's products of codes are exact.

    Some saturate at 16 bits; one product of the largest codes shows it.
    """
    left = torch.full((32, 256), LARGEST_CODE, dtype=torch.int8)
    right = left.clone()
    right[::2] *= -1
    try:
        products = torch._int_mm(left, right.T)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(products, (left.int() @ right.int().T))


def _codes(values: Tensor, peaks: Tensor) -> Tensor:
    # Half of a peak, which short floats often hold, stays a tie only in this order.
    codes = (values * LARGEST_CODE).div_(torch.where(peaks > 0, peaks, torch.ones_like(peaks)))
    return codes.round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
