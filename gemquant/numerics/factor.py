"""One factorisation of a Gram matrix that every later step shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError


@dataclass(frozen=True)
class GramFactor:
    """R with H + damping = R Rᵀ, R upper triangular (n, n) float32.

    With columns rounded in order, each error can still be made up for by the columns after it.
    What cannot be made up for at column j is R[j, j]² per unit of squared error: the variance of
    input j given the inputs after it. Scaling the inputs by 1 / s only scales the rows of R.
    """

    upper: Tensor

    @property
    def residual_variance(self) -> Tensor:
        """R[j, j]²: (n,)."""
        return self.upper.diagonal().square()

    def scaled(self, scale: Tensor) -> GramFactor:
        """The factor after inputs are divided by ``scale`` (n,)."""
        return GramFactor(self.upper / scale[:, None])


def factorise(gram: Tensor, *, damping: float = 0.01) -> GramFactor:
    """Factor a Gram matrix, damped by a fraction of its mean diagonal.

    Damping grows tenfold until the matrix is numerically positive definite, as it must be where
    fewer tokens than channels were seen. gram: (n, n) float32, symmetric, positive semidefinite.
    """
    mean = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(6):
        damped = gram.flip(0, 1)
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed.item():
            return GramFactor(lower.flip(0, 1))
        del lower
        damping *= 10
    raise UnsupportedError(
        f"A Gram matrix of {gram.shape[0]} channels is not positive definite at any damping.",
        hint="The calibration text gives no usable activations: use another, with --calib.",
    )
