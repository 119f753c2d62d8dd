"""One factorisation of a Gram matrix that every later step shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError

COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class GramFactor:
    """R with H + diag(damping) = R Rᵀ, R upper triangular (n, n) float32; damping (n,).

    With columns rounded in order, each error can still be made up for by the columns after it.
    What cannot be made up for at column j is R[j, j]² per unit of squared error: the variance of
    input j given the inputs after it. Scaling the inputs by 1 / s only scales the rows of R.
    """

    upper: Tensor
    damping: Tensor

    @property
    def residual_variance(self) -> Tensor:
        """R[j, j]²: (n,)."""
        return self.upper.diagonal().square()

    def scaled(self, scale: Tensor) -> GramFactor:
        """The factor after inputs are divided by ``scale`` (n,)."""
        return GramFactor(self.upper / scale[:, None], self.damping / scale.square())


def factorise(gram: Tensor, *, damping: float = 0.01) -> GramFactor:
    """Factor a Gram matrix, damped by a fraction of its mean diagonal.

    Damping grows tenfold until the matrix is numerically positive definite, as it must be where
    fewer tokens than channels were seen. gram: (n, n) float32, symmetric, positive semidefinite.
    """
    mean = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(6):
        damped = gram.flip(0, 1)
        damped.diagonal().add_(damping * mean)
        if _factor_in_place(damped):
            return GramFactor(damped.flip(0, 1), (damping * mean).expand(gram.shape[0]))
        del damped
        damping *= 10
    raise UnsupportedError(
        f"A Gram matrix of {gram.shape[0]} channels is not positive definite at any damping.",
        hint="The calibration text gives no usable activations: use another, with --calib.",
    )


def _factor_in_place(matrix: Tensor) -> bool:
    """Replace a symmetric matrix (n, n) by its lower Cholesky factor; False if there is none.

    In block columns, because LAPACK's routine gives other bits for another number of threads, while
    small factors, triangular solves and products do not: calibrated artifacts keep their bytes.
    """
    for start in range(0, matrix.shape[0], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, matrix.shape[0])
        column = matrix[start:, start:stop]
        if start:
            column.addmm_(matrix[start:, :start], matrix[start:stop, :start].T, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(column[: stop - start])
        if failed.item():
            return False
        matrix[start:stop, start:] = 0
        matrix[start:stop, start:stop] = corner
        below = matrix[stop:, start:stop]
        below.copy_(torch.linalg.solve_triangular(corner, below.T, upper=False).T)
    return True
