"""Error compensation: each column is rounded to make up for the errors of the columns before it.

The loss tr(E·H·Eᵀ), E = W − Q, with H = R Rᵀ and R upper triangular, is Σⱼ R[j, j]² (tⱼ − qⱼ)²
where tⱼ = wⱼ + Σ_{k<j} eₖ R[k, j] / R[j, j]. Rounding tⱼ instead of wⱼ is GPTQ's update (Frantar et
al., 2022, https://arxiv.org/abs/2210.17323) in the form that needs no inverse (LDLQ: Chee et al.,
2023, https://arxiv.org/abs/2307.13304).

Everything is kept in the units of the unscaled weight, so that one factor serves every scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width
from gemquant.numerics.clipping import RATIOS, search_range
from gemquant.numerics.factor import GramFactor

ROWS_AT_ONCE = 2048
COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class CompensationPlan:
    """What stays the same for every linear of a layer."""

    rounding: AffineRounding
    group_size: int
    ratios: tuple[float, ...] = RATIOS


def quantize_compensated(
    weight: Tensor, scale: Tensor, *, factor: GramFactor, plan: CompensationPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize weight · scale so that the layer's output changes least.

    weight: (out, in), unscaled. scale: (in,). factor: of the unscaled inputs' Gram matrix.
    Returns codes (out, in) uint8; scales, zero points (out, in / group_size) float32.
    """
    results = [
        _quantize_rows(rows, scale, factor=factor, plan=plan) for rows in weight.split(ROWS_AT_ONCE)
    ]
    codes, scales, zero_points = (torch.cat(parts) for parts in zip(*results, strict=True))
    return codes, scales, zero_points


def _quantize_rows(
    weight: Tensor, scale: Tensor, *, factor: GramFactor, plan: CompensationPlan
) -> tuple[Tensor, Tensor, Tensor]:
    columns = weight.shape[1]
    width = group_width(columns, plan.group_size)
    step = min(width, COLUMNS_AT_ONCE)
    # Columns come first from here on: one column of every row is then contiguous.
    wanted = weight.T.contiguous()
    errors = torch.zeros_like(wanted)
    codes = torch.empty_like(wanted)
    parameters: list[tuple[Tensor, Tensor]] = []
    for start in range(0, columns, step):
        block = slice(start, start + step)
        targets, diagonal = _targets(wanted, errors, factor, block)
        if start % width == 0:
            parameters.append(_group_parameters(targets, scale, factor, start, width, wanted, plan))
        scales, zero_points = parameters[-1]
        triangle = factor.upper[block, block] / diagonal
        for j in range(step):
            column = start + j
            target = targets.feedback[j]
            if j:
                target = torch.addmv(target, errors[start:column].T, triangle[:j, j])
            code = plan.rounding.encode(target * scale[column], scales, zero_points)
            codes[column] = code
            value = (code - zero_points).mul_(scales)
            errors[column] = wanted[column] - value.div_(scale[column])
    return (
        codes.T.contiguous().to(torch.uint8),
        torch.stack([scales for scales, _ in parameters], dim=1),
        torch.stack([zero_points for _, zero_points in parameters], dim=1),
    )


@dataclass(frozen=True)
class _Targets:
    """Where a block's columns should go, (columns, rows).

    feedback: with the errors before the block only; the block's own are added column by column.
    settled: what the feedback comes to if the block itself were rounded without error.
    """

    feedback: Tensor
    settled: Tensor


def _targets(
    wanted: Tensor, errors: Tensor, factor: GramFactor, block: slice
) -> tuple[_Targets, Tensor]:
    diagonal = factor.upper.diagonal()[block]
    if block.start == 0:
        return _Targets(wanted[block], wanted[block]), diagonal
    pushed = factor.upper[: block.start, block].T @ errors[: block.start]
    settled = torch.linalg.solve_triangular(factor.upper[block, block].T, pushed, upper=False)
    return (
        _Targets(wanted[block] + pushed / diagonal[:, None], wanted[block] + settled),
        diagonal,
    )


def _group_parameters(
    targets: _Targets,
    scale: Tensor,
    factor: GramFactor,
    start: int,
    width: int,
    wanted: Tensor,
    plan: CompensationPlan,
) -> tuple[Tensor, Tensor]:
    # A group wider than a block is a whole row, and nothing comes before it.
    settled = targets.settled if width <= targets.settled.shape[0] else wanted
    group = slice(start, start + width)
    return search_range(
        (settled * scale[group, None]).T.contiguous(),
        rounding=plan.rounding,
        metric=factor.residual_variance[group] / scale[group].square(),
        ratios=plan.ratios,
    )
