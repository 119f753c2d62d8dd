"""Search each group's range: a narrower one rounds most weights finer and clips a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width
from gemquant.numerics.native import rounding as native

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
    if not clip:
        return rounding.parameters(low, high)
    prices = _Prices(group, rounding, metric)
    coarse = torch.tensor(COARSE, device=group.device)[:, None].expand(-1, low.shape[0])
    best = _offer(prices, low, high, coarse)
    fine = torch.stack([best.ratio - FINE_STEP, (best.ratio + FINE_STEP).clamp(max=1.0)])
    finer = _offer(prices, low, high, fine)
    better = finer.price < best.price
    return (
        torch.where(better, finer.scales, best.scales),
        torch.where(better, finer.zero_points, best.zero_points),
    )


@dataclass(frozen=True)
class _Offer:
    """The cheapest of several fractions of every row's range; (rows,) each."""

    price: Tensor
    ratio: Tensor
    scales: Tensor
    zero_points: Tensor


def _offer(prices: _Prices, low: Tensor, high: Tensor, ratios: Tensor) -> _Offer:
    """Price fractions of the range, (candidates, rows); the first of equals wins."""
    scales, zero_points = prices.rounding.parameters(low * ratios, high * ratios)
    price = prices(scales, zero_points)
    chosen = price.argmin(0, keepdim=True)
    return _Offer(*(t.gather(0, chosen)[0] for t in (price, ratios, scales, zero_points)))


class _Prices:
    """What candidates for scale and zero point cost each row of a group."""

    def __init__(self, group: Tensor, rounding: AffineRounding, metric: Tensor) -> None:
        self.rounding, self._metric = rounding, metric
        self._native = metric.ndim == 1 and native.is_usable(group)
        self._group = group.T.contiguous() if self._native else group.contiguous()

    def __call__(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        """Return prices (candidates, rows) of scales and zero points (candidates, rows)."""
        if self._native:
            return native.price(self._group, self._metric, scales, zero_points, self.rounding)
        return torch.stack(
            [self._price(*candidate) for candidate in zip(scales, zero_points, strict=True)]
        )

    def _price(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        error = self.rounding.error(self._group, scales[:, None], zero_points[:, None])
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
