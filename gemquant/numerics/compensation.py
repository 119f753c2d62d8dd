"""Error compensation: each column is rounded to make up for the errors of the columns before it.

The loss tr(E·H·Eᵀ), E = W − Q, with H = R Rᵀ and R upper triangular, is Σⱼ R[j, j]² (tⱼ − qⱼ)²
where tⱼ = wⱼ + Σ_{k<j} eₖ R[k, j] / R[j, j]. Rounding tⱼ instead of wⱼ is GPTQ's update (Frantar et
al., 2022, https://arxiv.org/abs/2210.17323) in the form that needs no inverse (LDLQ: Chee et al.,
2023, https://arxiv.org/abs/2307.13304). Refinement then revisits every code with all the others
fixed (coordinate descent), which can only lower the loss: on Gemma 3 270M two passes take off 13 to
21 % of what compensation leaves.

Everything is kept in the units of the unscaled weight, so that one factor serves every scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding, group_width
from gemquant.numerics.clipping import search_range
from gemquant.numerics.factor import GramFactor

ROWS_AT_ONCE = 2048
COLUMNS_AT_ONCE = 128
# Within a block, what earlier columns push onto later ones comes as a product for all but these.
COLUMNS_IN_TURN = 32


@dataclass(frozen=True)
class CompensationPlan:
    """What stays the same for every linear of a layer.

    clip: search each group's range instead of covering all of it.
    refinements: passes of coordinate descent after the first rounding.
    """

    rounding: AffineRounding
    group_size: int
    clip: bool = True
    refinements: int = 0


def quantize_compensated(
    weight: Tensor, scale: Tensor, *, gram: Tensor, factor: GramFactor, plan: CompensationPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize weight · scale so that the layer's output changes least.

    weight: (out, in), unscaled. scale: (in,). gram: (in, in) of the unscaled inputs, and its
    factor.
    Returns codes (out, in) uint8; scales, zero points (out, in / group_size) float32.
    """
    results = [
        _quantize_rows(rows, scale, gram=gram, factor=factor, plan=plan)
        for rows in weight.split(ROWS_AT_ONCE)
    ]
    codes, scales, zero_points = (torch.cat(parts) for parts in zip(*results, strict=True))
    return codes, scales, zero_points


def _quantize_rows(
    weight: Tensor, scale: Tensor, *, gram: Tensor, factor: GramFactor, plan: CompensationPlan
) -> tuple[Tensor, Tensor, Tensor]:
    columns = weight.shape[1]
    width = group_width(columns, plan.group_size)
    step = min(width, COLUMNS_AT_ONCE)
    blocks = [slice(start, min(start + step, columns)) for start in range(0, columns, step)]
    # Columns come first from here on: one column of every row is then contiguous.
    wanted = weight.T.contiguous()
    errors = torch.zeros_like(wanted)
    codes = torch.empty_like(wanted)
    parameters: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        targets, diagonal = _targets(wanted, errors, factor, block)
        if block.start % width == 0:
            group = slice(block.start, block.start + width)
            parameters.append(_group_parameters(targets, scale, factor, group, wanted, plan))
        scales, zero_points = parameters[-1]
        triangle = factor.upper[block, block] / diagonal
        for turn in _turns(block):
            first = turn.start - block.start
            ahead = targets.feedback[first : turn.stop - block.start]
            if first:
                pushing = triangle[:first, first : turn.stop - block.start]
                ahead = torch.addmm(ahead, pushing.T, errors[block.start : turn.start])
            for j, column in enumerate(range(turn.start, turn.stop)):
                target = ahead[j]
                if j:
                    pushing = triangle[first : first + j, first + j]
                    target = torch.addmv(target, errors[turn.start : column].T, pushing)
                code = plan.rounding.encode(target * scale[column], scales, zero_points)
                codes[column] = code
                value = (code - zero_points).mul_(scales)
                errors[column] = wanted[column] - value.div_(scale[column])
    for _ in range(plan.refinements):
        for block in blocks:
            _refine_block(
                block,
                wanted=wanted,
                errors=errors,
                codes=codes,
                scale=scale,
                gram=gram,
                damping=factor.damping,
                parameters=parameters[block.start // width],
                rounding=plan.rounding,
            )
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
    group: slice,
    wanted: Tensor,
    plan: CompensationPlan,
) -> tuple[Tensor, Tensor]:
    # A group wider than a block is a whole row, and nothing comes before it.
    within_block = group.stop - group.start <= targets.settled.shape[0]
    settled = targets.settled if within_block else wanted
    return search_range(
        (settled * scale[group, None]).T.contiguous(),
        rounding=plan.rounding,
        metric=factor.residual_variance[group] / scale[group].square(),
        clip=plan.clip,
    )


def _refine_block(
    block: slice,
    *,
    wanted: Tensor,
    errors: Tensor,
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    damping: Tensor,
    parameters: tuple[Tensor, Tensor],
    rounding: AffineRounding,
) -> None:
    """Move each code of a block to its best value given all the others, in place.

    The damping counts here too: without it the codes would fit the calibration tokens where these
    are no more than the channels, and lose on others.
    """
    scales, zero_points = parameters
    gradient = torch.addcmul(gram[block] @ errors, damping[block, None], errors[block])
    curvature = gram.diagonal() + damping
    change = torch.empty_like(gradient)
    for turn in _turns(block):
        first = turn.start - block.start
        slopes = gradient[first : turn.stop - block.start]
        if first:
            slopes = torch.addmm(slopes, gram[turn, block.start : turn.start], change[:first])
        for j, column in enumerate(range(turn.start, turn.stop)):
            slope = slopes[j]
            if j:
                moved_before = change[first : first + j]
                slope = torch.addmv(slope, moved_before.T, gram[column, turn.start : column])
            value = wanted[column] - errors[column]
            target = value + slope / curvature[column]
            code = rounding.encode(target * scale[column], scales, zero_points)
            moved = (code - zero_points).mul_(scales).div_(scale[column])
            change[first + j] = value - moved
            codes[column] = code
            errors[column] = wanted[column] - moved


def _turns(block: slice) -> list[slice]:
    """A block's columns in runs of COLUMNS_IN_TURN."""
    return [
        slice(start, min(start + COLUMNS_IN_TURN, block.stop))
        for start in range(block.start, block.stop, COLUMNS_IN_TURN)
    ]
