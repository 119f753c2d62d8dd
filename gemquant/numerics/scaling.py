"""Search one scale per input channel, so that the channels that matter lose least.

The loss of rounding a layer with inputs x is tr(ΔW·H·ΔWᵀ), H = Σ x xᵀ. Where compensation follows,
only the residual variances of H's factor count: they price exactly the errors that no later column
can make up for. Cost does not depend on the number of tokens.

Source: Lin et al., 2023, https://arxiv.org/abs/2306.00978, section 3.2, for the family of scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.accumulate import accumulator
from gemquant.numerics.affine import AffineRounding, group_width

SAMPLED_ROWS = 512
WEIGHT_EXPONENTS: tuple[float, ...] = (0.0, 0.5)
COARSE_EXPONENTS: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FINE_STEPS: tuple[float, ...] = (-0.1, -0.05, 0.05, 0.1)
# Beyond these a scale would leave the range of a float16 norm or scale.
SMALLEST, LARGEST = 2.0**-10, 2.0**10


@dataclass(frozen=True)
class ScaleProblem:
    """Linears that read the same input, and what an error at each input costs.

    weights: (rows, in) each. salience: (in,) mean |x|.
    sensitivity: the metric of the loss Δ·sensitivity·Δᵀ, (in, in), or its diagonal, (in,).
    shared: (kv_heads, repeats, head_dim) where that many inputs must share one scale.
    """

    weights: tuple[Tensor, ...]
    salience: Tensor
    sensitivity: Tensor
    rounding: AffineRounding
    group_size: int
    shared: tuple[int, int, int] | None = None


def search_scale(problem: ScaleProblem) -> Tensor:
    """Return the best scale, (in,) float32 and positive; all ones where nothing is better.

    A coarse grid of exponents, then steps around the best; the identity is always among them.
    """
    rows = _sampled(problem.weights)
    family = _family(rows, problem)
    identity = _Priced(_price(rows, torch.ones_like(problem.salience), problem), 0.0, 0.0)
    priced = [
        _Priced(_price(rows, family(by_salience, by_weight), problem), by_salience, by_weight)
        for by_weight in WEIGHT_EXPONENTS
        for by_salience in COARSE_EXPONENTS
        if by_salience or by_weight
    ]
    best = min(priced)
    priced += [
        _Priced(_price(rows, family(exponent, best.by_weight), problem), exponent, best.by_weight)
        for exponent in (best.by_salience + step for step in FINE_STEPS)
        if 0 <= exponent <= 1
    ]
    best = min(identity, *priced)
    return family(best.by_salience, best.by_weight)


@dataclass(frozen=True, order=True)
class _Priced:
    """A member of the family of scales, by what it costs."""

    price: float
    by_salience: float
    by_weight: float


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
        return _normalised(_shared(member, problem.shared))

    return scale


def _shared(scale: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Give inputs that one row feeds one scale: the geometric mean of theirs."""
    if shape is None:
        return scale
    return scale.reshape(shape).log().mean(1, keepdim=True).exp().expand(shape).reshape(-1)


def _normalised(scale: Tensor) -> Tensor:
    centred = scale / (scale.amax() * scale.amin()).sqrt()
    return centred.clamp(SMALLEST, LARGEST)


def _sampled(weights: tuple[Tensor, ...]) -> Tensor:
    """Evenly spaced rows of all linears, about SAMPLED_ROWS in all."""
    stride = max(1, sum(weight.shape[0] for weight in weights) // SAMPLED_ROWS)
    return torch.cat([weight[::stride] for weight in weights])


def _error(rows: Tensor, scale: Tensor, problem: ScaleProblem) -> Tensor:
    """What rounding the scaled rows adds to the unscaled ones."""
    width = group_width(rows.shape[1], problem.group_size)
    grouped = (rows * scale).unflatten(1, (-1, width))
    scales, zero_points = problem.rounding.parameters(grouped.amin(-1), grouped.amax(-1))
    error = problem.rounding.error(grouped, scales[..., None], zero_points[..., None])
    return error.mul_(scales[..., None]).flatten(1).div_(scale)


def _price(rows: Tensor, scale: Tensor, problem: ScaleProblem) -> float:
    error = _error(rows, scale, problem)
    if problem.sensitivity.ndim == 2:
        return float((error @ problem.sensitivity).mul_(error).sum(dtype=accumulator(rows.device)))
    wide = accumulator(rows.device)
    return float((error.square_().sum(0).to(wide) * problem.sensitivity.to(wide)).sum())
