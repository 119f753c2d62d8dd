"""Search each group's range: a narrower one rounds most weights finer and clips a few."""

from __future__ import annotations

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width

RATIOS: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


def search_range(
    group: Tensor,
    *,
    rounding: AffineRounding,
    metric: Tensor,
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[Tensor, Tensor]:
    """Choose each row's scale and zero point for one group of columns.

    group: (rows, width). metric: (width, width) for the loss Δ·metric·Δᵀ, or (width,) for its
    diagonal alone. Returns scales and zero points, (rows,) float32.
    """
    low, high = group.amin(-1), group.amax(-1)
    best_loss: Tensor | None = None
    for ratio in ratios:
        candidate_scales, candidate_zeros = rounding.parameters(low * ratio, high * ratio)
        error = rounding.round(group, candidate_scales[:, None], candidate_zeros[:, None])
        error.sub_(group)
        weighed = error @ metric if metric.ndim == 2 else error * metric
        loss = weighed.mul_(error).sum(-1)
        if best_loss is None:
            best_loss, scales, zero_points = loss, candidate_scales, candidate_zeros
            continue
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        scales = torch.where(better, candidate_scales, scales)
        zero_points = torch.where(better, candidate_zeros, zero_points)
    return scales, zero_points


def quantize_clipped(
    weight: Tensor,
    scale: Tensor,
    *,
    gram: Tensor,
    rounding: AffineRounding,
    group_size: int,
    ratios: tuple[float, ...] = RATIOS,
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
        found = search_range(group, rounding=rounding, metric=metric, ratios=ratios)
        scales.append(found[0])
        zero_points.append(found[1])
        codes.append(rounding.encode(group, found[0][:, None], found[1][:, None]))
    return (
        torch.cat(codes, dim=1).to(torch.uint8),
        torch.stack(scales, dim=1),
        torch.stack(zero_points, dim=1),
    )
