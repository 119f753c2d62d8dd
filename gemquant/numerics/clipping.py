"""Search each group's range: a narrower one rounds most weights finer and clips a few."""

from __future__ import annotations

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width

COARSE: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FINE_STEP = 0.05


def search_range(
    group: Tensor, *, rounding: AffineRounding, metric: Tensor, clip: bool = True
) -> tuple[Tensor, Tensor]:
    """Choose each row's scale and zero point for one group of columns.

    A coarse grid of fractions of the range, then one step to either side of each row's best.
    group: (rows, width). metric: (width, width) for the loss Δ·metric·Δᵀ, or (width,) for its
    diagonal alone. Without ``clip`` the whole range is covered.
    Returns scales and zero points, (rows,) float32.
    """
    low, high = group.amin(-1), group.amax(-1)
    best = _Best(group, rounding, metric, *rounding.parameters(low, high))
    if not clip:
        return best.scales, best.zero_points
    ratio = torch.ones_like(low)
    for coarse in COARSE[1:]:
        better = best.offer(*rounding.parameters(low * coarse, high * coarse))
        ratio = torch.where(better, coarse, ratio)
    for fine in (ratio - FINE_STEP, (ratio + FINE_STEP).clamp(max=1.0)):
        best.offer(*rounding.parameters(low * fine, high * fine))
    return best.scales, best.zero_points


class _Best:
    """The best scale and zero point so far of every row, and their loss."""

    def __init__(
        self,
        group: Tensor,
        rounding: AffineRounding,
        metric: Tensor,
        scales: Tensor,
        zero_points: Tensor,
    ) -> None:
        self._group, self._rounding, self._metric = group, rounding, metric
        self.scales, self.zero_points = scales, zero_points
        self._loss = self._price(scales, zero_points)

    def offer(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Take a candidate (rows,) where it is better; return where it was."""
        loss = self._price(scales, zero_points)
        better = loss < self._loss
        self._loss = torch.where(better, loss, self._loss)
        self.scales = torch.where(better, scales, self.scales)
        self.zero_points = torch.where(better, zero_points, self.zero_points)
        return better

    def _price(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        error = self._rounding.error(self._group, scales[:, None], zero_points[:, None])
        if self._metric.ndim == 1:
            price = torch.mv(error.square_(), self._metric)
        else:
            price = (error @ self._metric).mul_(error).sum(-1)
        return price * scales.square()


def quantize_clipped(
    weight: Tensor,
    scale: Tensor,
    *,
    gram: Tensor,
    rounding: AffineRounding,
    group_size: int,
    clip: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round weight · scale to nearest within the range that each group loses least by.

    weight: (out, in), unscaled. scale: (in,). gram: (in, in) of the unscaled inputs.
    Returns codes (out, in) uint8; scales, zero points (out, in / group_size) float32.
    """
    width = group_width(weight.shape[1], group_size)
    codes, scales, zero_points = [], [], []
    for start in range(0, weight.shape[1], width):
        columns = slice(start, start + width)
        group = weight[:, columns] * scale[columns]
        metric = gram[columns, columns] / torch.outer(scale[columns], scale[columns])
        found = search_range(group, rounding=rounding, metric=metric, clip=clip)
        scales.append(found[0])
        zero_points.append(found[1])
        codes.append(rounding.encode(group, found[0][:, None], found[1][:, None]))
    return (
        torch.cat(codes, dim=1).to(torch.uint8),
        torch.stack(scales, dim=1),
        torch.stack(zero_points, dim=1),
    )
