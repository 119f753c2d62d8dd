"""Search one scale per input channel, so that the channels that matter lose least.

The loss of rounding a layer with inputs x is tr(ΔW·H·ΔWᵀ), H = Σ x xᵀ. Every candidate is first
priced with the part of H that costs no product: its diagonal or, where compensation follows, the
residual variances of its factor, which price exactly the errors that no later column can make up
for. Cost does not depend on the number of tokens.

Source: Lin et al., 2023, https://arxiv.org/abs/2306.00978, section 3.2, for the family of scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.accumulate import accumulator
from gemquant.numerics.affine import AffineRounding, group_width

SAMPLED_ROWS = 1024
FINALISTS = 3
EXPONENTS: tuple[float, ...] = tuple(k / 20 for k in range(21))
WEIGHT_EXPONENTS: tuple[float, ...] = (0.0, 0.5)
# Beyond these a scale would leave the range of a float16 norm or scale.
SMALLEST, LARGEST = 2.0**-10, 2.0**10


@dataclass(frozen=True)
class ScaleProblem:
    """Linears that read the same input, and what an error at each input costs.

    weights: (rows, in) each. salience: (in,) mean |x|.
    sensitivity: (in,) price of a unit of squared error at each input.
    shared: (kv_heads, repeats, head_dim) where that many inputs must share one scale.
    """

    weights: tuple[Tensor, ...]
    salience: Tensor
    sensitivity: Tensor
    rounding: AffineRounding
    group_size: int
    shared: tuple[int, int, int] | None = None


def search_scale(problem: ScaleProblem, *, gram: Tensor | None = None) -> Tensor:
    """Return the best scale, (in,) float32 and positive; all ones where nothing is better.

    gram: (in, in); when given, the candidates priced best are compared by the whole loss.
    """
    rows = _sampled(problem.weights)
    priced = [(_price(rows, scale, problem), scale) for scale in _candidates(rows, problem)]
    identity, *others = priced
    best = sorted(others, key=lambda entry: entry[0])[: 1 if gram is None else FINALISTS]
    finalists = [identity, *best]
    if gram is not None:
        finalists = [(_whole_loss(rows, scale, gram, problem), scale) for _, scale in finalists]
    return min(finalists, key=lambda entry: entry[0])[1]


def _candidates(rows: Tensor, problem: ScaleProblem) -> Iterator[Tensor]:
    """Salience to a power over weight magnitude to another; the identity comes first."""
    salience = problem.salience.clamp(min=1e-8)
    grouped = rows.abs().unflatten(1, (-1, group_width(rows.shape[1], problem.group_size)))
    peaks = grouped.amax(-1, keepdim=True).clamp(min=1e-12)
    magnitude = (grouped / peaks).mean(0).flatten().clamp(min=1e-4)
    yield torch.ones_like(salience)
    for by_weight in WEIGHT_EXPONENTS:
        for by_salience in EXPONENTS:
            if by_weight == 0 and by_salience == 0:
                continue
            scale = salience**by_salience / magnitude**by_weight
            yield _normalised(_shared(scale, problem.shared))


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
    wide = accumulator(rows.device)
    return float((error.square_().sum(0).to(wide) * problem.sensitivity.to(wide)).sum())


def _whole_loss(rows: Tensor, scale: Tensor, gram: Tensor, problem: ScaleProblem) -> float:
    error = _error(rows, scale, problem)
    return float((error @ gram).mul_(error).sum(dtype=accumulator(rows.device)))
