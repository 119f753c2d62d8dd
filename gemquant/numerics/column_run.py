"""A run of columns rounded one after the other: by the C kernels, or in plain torch without them.

Matrices come columns first. The two ways add in different orders, so that a code may differ where a
value lies half way between two; either way the bytes are the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.affine import AffineRounding
from gemquant.numerics.native import rounding as native

# What earlier columns push onto later ones comes as a product for all but these.
COLUMNS_IN_TURN = 32


@dataclass(frozen=True)
class ColumnRun:
    """Consecutive columns of one group, being rounded; errors and codes are written in place.

    wanted: (columns, rows), the unscaled weight. errors: alike, wanted − what the codes stand for.
    codes: (columns, rows) uint8. column_scales: (columns,), rounding happens in units of weight
    times this. scales, zero_points: (rows,), the group's.
    """

    wanted: Tensor
    errors: Tensor
    codes: Tensor
    column_scales: Tensor
    scales: Tensor
    zero_points: Tensor
    rounding: AffineRounding

    def settle(self, column: int, target: Tensor) -> Tensor:
        """Round a column to its target values (rows,); return the error that remains."""
        scale = self.column_scales[column]
        code = self.rounding.encode(target * scale, self.scales, self.zero_points)
        self.codes[column] = code
        value = (code - self.zero_points).mul_(self.scales).div_(scale)
        self.errors[column] = self.wanted[column] - value
        return self.errors[column]


def compensate_run(run: ColumnRun, feedback: Tensor, triangle: Tensor) -> None:
    """Round each column to what it should be after the errors of the columns before it.

    feedback: (columns, rows), the weight with what earlier runs ask. triangle: (columns, columns),
    [k, j] what an error in column k < j asks of column j.
    """
    if native.is_usable(feedback):
        native.compensate(run, feedback, triangle)
        return
    for turn in _turns(feedback.shape[0]):
        targets = feedback[turn]
        if turn.start:
            pushing = triangle[: turn.start, turn]
            targets = torch.addmm(targets, pushing.T, run.errors[: turn.start])
        for j, column in enumerate(range(turn.start, turn.stop)):
            target = targets[j]
            if j:
                pushing = triangle[turn.start : column, column]
                target = torch.addmv(target, run.errors[turn.start : column].T, pushing)
            run.settle(column, target)


def refine_run(run: ColumnRun, gradient: Tensor, gram: Tensor, curvature: Tensor) -> None:
    """Move each code to its best value given all the others.

    gradient: (columns, rows), what the errors ask as they come in. gram: (columns, columns).
    curvature: (columns,), the loss of a unit of squared error.
    """
    if native.is_usable(gradient):
        native.refine(run, gradient, gram, curvature)
        return
    change = torch.empty_like(gradient)
    for turn in _turns(gradient.shape[0]):
        slopes = gradient[turn]
        if turn.start:
            slopes = torch.addmm(slopes, gram[turn, : turn.start], change[: turn.start])
        for j, column in enumerate(range(turn.start, turn.stop)):
            slope = slopes[j]
            if j:
                moved = change[turn.start : column]
                slope = torch.addmv(slope, moved.T, gram[column, turn.start : column])
            value = run.wanted[column] - run.errors[column]
            remaining = run.settle(column, value + slope / curvature[column])
            change[column] = value - (run.wanted[column] - remaining)


def _turns(columns: int) -> Iterator[slice]:
    for start in range(0, columns, COLUMNS_IN_TURN):
        yield slice(start, min(start + COLUMNS_IN_TURN, columns))
