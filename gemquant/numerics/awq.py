"""AWQ on tensors: search a scale per input channel, fold it into a norm, search group ranges.

The loss of rounding a linear with inputs x is tr(ΔW·H·ΔWᵀ), H = Σ x xᵀ. Where GPTQ follows, only
the residual variances of H's Cholesky factor count: they weigh exactly the errors that no later
column can compensate. The cost does not depend on the number of tokens.

Source: AWQ, Lin et al., 2023, https://arxiv.org/abs/2306.00978, section 3.2, for the family of
scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width
from gemquant.numerics.native import columns, is_usable
from gemquant.numerics.precision import accumulator

SAMPLED_ROWS = 512
WEIGHT_EXPONENTS: tuple[float, ...] = (0.0, 0.5)
COARSE_EXPONENTS: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FINE_STEPS: tuple[float, ...] = (-0.1, -0.05, 0.05, 0.1)
# Beyond these a scale would leave the range of a float16 norm or scale.
SMALLEST, LARGEST = 2.0**-10, 2.0**10

COARSE_RATIOS: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FINE_RATIO_STEP = 0.05

# ---------------------------------------------------------------- scales


@dataclass(frozen=True)
class ScaleProblem:
    """Linears that read the same input, and what an error at each input costs.

    rows: (rows, in) of all linears, or evenly spaced ones of them. salience: (in,) mean |x|.
    sensitivity: the metric of the loss Δ·sensitivity·Δᵀ, (in, in), or its diagonal, (in,).
    shared: (kv_heads, repeats, head_dim) where ``repeats`` inputs must share one scale.
    """

    rows: Tensor
    salience: Tensor
    sensitivity: Tensor
    rounding: AffineRounding
    group_size: int
    shared: tuple[int, int, int] | None = None


def search_scale(problem: ScaleProblem) -> Tensor:
    """Return the best scale, (in,) float32 and positive; all ones where nothing is better.

    A coarse grid of exponents, then steps around the best; the identity is always among them.
    """
    rows = problem.rows
    family = _family(rows, problem)

    def candidate(by_salience: float, by_weight: float) -> tuple[float, float, float]:
        loss = _scale_loss(rows, family(by_salience, by_weight), problem)
        return loss, by_salience, by_weight

    candidates = [
        candidate(by_salience, by_weight)
        for by_weight in WEIGHT_EXPONENTS
        for by_salience in COARSE_EXPONENTS
        if by_salience or by_weight
    ]
    _, by_salience, by_weight = min(candidates)
    candidates += [
        candidate(by_salience + step, by_weight)
        for step in FINE_STEPS
        if 0 <= by_salience + step <= 1
    ]
    _, by_salience, by_weight = min(candidate(0.0, 0.0), *candidates)
    return family(by_salience, by_weight)


def _family(rows: Tensor, problem: ScaleProblem) -> Callable[[float, float], Tensor]:
    """Salience to a power over weight magnitude to another; both zero is the identity."""
    salience = problem.salience.clamp(min=1e-8)
    grouped = rows.abs().unflatten(1, (-1, group_width(rows.shape[1], problem.group_size)))
    peaks = grouped.amax(-1, keepdim=True).clamp(min=1e-12)
    magnitude = (grouped / peaks).mean(0).flatten().clamp(min=1e-4)

    def scale(by_salience: float, by_weight: float) -> Tensor:
        if by_salience == by_weight == 0:
            return torch.ones_like(salience)
        member = salience**by_salience / magnitude**by_weight
        return _normalized(_shared(member, problem.shared))

    return scale


def _shared(scale: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Give inputs that one row feeds one scale: the geometric mean of theirs."""
    if shape is None:
        return scale
    return scale.reshape(shape).log().mean(1, keepdim=True).exp().expand(shape).reshape(-1)


def _normalized(scale: Tensor) -> Tensor:
    centred = scale / (scale.amax() * scale.amin()).sqrt()
    return centred.clamp(SMALLEST, LARGEST)


def sampling_stride(rows: int) -> int:
    """The distance of evenly spaced rows, about SAMPLED_ROWS in all."""
    return max(1, rows // SAMPLED_ROWS)


def _scale_loss(rows: Tensor, scale: Tensor, problem: ScaleProblem) -> float:
    """Loss of rounding the scaled rows, in units of the unscaled ones."""
    width = group_width(rows.shape[1], problem.group_size)
    grouped = (rows * scale).unflatten(1, (-1, width))
    scales, zero_points = problem.rounding.parameters(grouped.amin(-1), grouped.amax(-1))
    error = problem.rounding.error(grouped, scales[..., None], zero_points[..., None])
    error = error.mul_(scales[..., None]).flatten(1).div_(scale)
    wide = accumulator(rows.device)
    if problem.sensitivity.ndim == 2:
        return float((error @ problem.sensitivity).mul_(error).sum(dtype=wide))
    return float((error.square_().sum(0).to(wide) * problem.sensitivity.to(wide)).sum())


# ---------------------------------------------------------------- folding


def fold_into_norm(
    weight: Tensor, scale: Tensor, *, dtype: torch.dtype, offset: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Divide a norm's gain by ``scale``; return the norm and the scale that it really divides by.

    The gain is offset + w (Gemma's offset is 1), so w' = (offset + w) / scale − offset. Stored in a
    short type w' loses precision where the gain is small; the returned scale is therefore that of
    the rounded norm, (offset + w) / (offset + w'), and norm and following weights agree exactly. A
    channel whose gain is zero, or would round to zero, keeps its weight and a scale of one.

    weight, scale: (channels,) float32. Returns the rounded norm weight and the effective scale.
    """
    gain = offset + weight
    folded = (gain / scale - offset).to(dtype).float()
    effective = gain / (offset + folded)
    unfolded = weight.to(dtype).float()
    sound = torch.isfinite(effective) & (effective > 0)
    # A channel left alone must still agree with the norm as it is stored.
    rest = torch.where(offset + unfolded != 0, gain / (offset + unfolded), torch.ones_like(gain))
    rest = torch.where(rest > 0, rest, torch.ones_like(gain))
    return torch.where(sound, folded, unfolded), torch.where(sound, effective, rest)


# ---------------------------------------------------------------- ranges


def search_range(
    group: Tensor, *, rounding: AffineRounding, metric: Tensor, clip: bool = True
) -> tuple[Tensor, Tensor]:
    """Choose each row's scale and zero point for one group of columns.

    A narrower range rounds most weights finer and clips a few. Tries a coarse grid of fractions of
    the range, then one step to either side of each row's best.

    group: (rows, width). metric: (width, width) for the loss Δ·metric·Δᵀ, or (width,) for its
    diagonal alone. Without ``clip`` the whole range is covered.
    Returns scales and zero points, (rows,) float32.
    """
    low, high = group.amin(-1), group.amax(-1)
    if not clip:
        return rounding.parameters(low, high)
    losses = _RangeLosses(group, rounding, metric)
    coarse = torch.tensor(COARSE_RATIOS, device=group.device)[:, None].expand(-1, low.shape[0])
    best = losses.best(low, high, coarse)
    fine = torch.stack([best.ratio - FINE_RATIO_STEP, (best.ratio + FINE_RATIO_STEP).clamp(max=1)])
    finer = losses.best(low, high, fine)
    better = finer.loss < best.loss
    return (
        torch.where(better, finer.scales, best.scales),
        torch.where(better, finer.zero_points, best.zero_points),
    )


@dataclass(frozen=True)
class _Ranges:
    """The best of several fractions of every row's range; (rows,) each."""

    loss: Tensor
    ratio: Tensor
    scales: Tensor
    zero_points: Tensor


class _RangeLosses:
    """Losses of candidate scales and zero points for each row of a group."""

    def __init__(self, group: Tensor, rounding: AffineRounding, metric: Tensor) -> None:
        self._rounding, self._metric = rounding, metric
        self._native = metric.ndim == 1 and is_usable(group)
        self._group = group.T.contiguous() if self._native else group.contiguous()

    def best(self, low: Tensor, high: Tensor, ratios: Tensor) -> _Ranges:
        """Try fractions of the range, (candidates, rows); the first of equals wins."""
        scales, zero_points = self._rounding.parameters(low * ratios, high * ratios)
        if self._native:
            losses = columns.losses(self._group, self._metric, scales, zero_points, self._rounding)
        else:
            losses = torch.stack(list(map(self._loss, scales, zero_points)))
        chosen = losses.argmin(0, keepdim=True)
        return _Ranges(*(t.gather(0, chosen)[0] for t in (losses, ratios, scales, zero_points)))

    def _loss(self, scales: Tensor, zero_points: Tensor) -> Tensor:
        error = self._rounding.error(self._group, scales[:, None], zero_points[:, None])
        if self._metric.ndim == 1:
            loss = torch.mv(error.square_(), self._metric)
        else:
            loss = (error @ self._metric).mul_(error).sum(-1)
        return loss * scales.square()


def quantize_clipped(
    weight: Tensor,
    scale: Tensor,
    *,
    gram: Tensor,
    rounding: AffineRounding,
    group_size: int,
    clip: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round weight · scale to nearest, each group within the range of least loss.

    weight: (out, in), unscaled. scale: (in,). gram: (in, in) of the unscaled inputs.
    Returns codes (out, in) uint8; scales, zero points (out, in / group_size) float32.
    """
    width = group_width(weight.shape[1], group_size)
    codes, scales, zero_points = [], [], []
    for start in range(0, weight.shape[1], width):
        columns = slice(start, start + width)
        group = weight[:, columns] * scale[columns]
        metric = gram[columns, columns] / torch.outer(scale[columns], scale[columns])
        group_scales, group_zeros = search_range(group, rounding=rounding, metric=metric, clip=clip)
        scales.append(group_scales)
        zero_points.append(group_zeros)
        codes.append(rounding.encode(group, group_scales[:, None], group_zeros[:, None]))
    return (
        torch.cat(codes, dim=1).to(torch.uint8),
        torch.stack(scales, dim=1),
        torch.stack(zero_points, dim=1),
    )
