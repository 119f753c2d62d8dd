"""SmoothQuant: scales that move outliers of activations into weights, so that 8 bits hold both.

A linear with inputs x computes the same of x / s and W · s. Candidates are SmoothQuant's family,
s = max|x|^a / max|W|^b. Each is tried on a sample of the inputs, with 8-bit weights and 8-bit
activations: once with one scale per token, and once with one scale for all tokens, from the largest
input of the calibration text. The loss is twice the logarithm of the first error, which is harder
to lower, plus that of the second: only the factor by which each falls counts, so that neither
improves at the other's expense.

Source: Xiao et al., 2022, https://arxiv.org/abs/2211.10438, section 4, for the family (there
b = 1 − a); loss and search are our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.int8 import LARGEST_CODE, Int8Weight

SAMPLED_ROWS = 256
BY_ACTIVATIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BY_WEIGHTS = (0.0, 0.2, 0.4)
PER_TOKEN_WEIGHT, PER_TENSOR_WEIGHT = 2.0, 1.0
# Beyond these a scale would leave the range of a float16 norm.
SMALLEST, LARGEST = 2.0**-10, 2.0**10
LEAST = 1e-5


@dataclass(frozen=True)
class SmoothingProblem:
    """Linears that read the same input.

    weights: (rows, in) each. inputs: a sample, (tokens, in). max_abs: of all inputs, (in,).
    group_size: input channels that share a weight's scale, −1 for all.
    shared: (kv_heads, repeats, head_dim) where that many inputs must share one scale.
    """

    weights: tuple[Tensor, ...]
    inputs: Tensor
    max_abs: Tensor
    group_size: int
    shared: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class RoundingErrors:
    """Squared errors of the outputs over the outputs' own squares, mean over tokens."""

    per_token: float
    per_tensor: float

    def loss(self, before: RoundingErrors) -> float:
        """Logarithm of the change from ``before``; negative is better."""
        token = math.log((self.per_token + 1e-30) / (before.per_token + 1e-30))
        tensor = math.log((self.per_tensor + 1e-30) / (before.per_tensor + 1e-30))
        return PER_TOKEN_WEIGHT * token + PER_TENSOR_WEIGHT * tensor


@dataclass(frozen=True)
class SmoothingScale:
    """The best scale, (in,) float32 and positive, and its exponents; both 0 for no scale."""

    scale: Tensor
    by_activations: float
    by_weights: float


def search_smoothing(problem: SmoothingProblem) -> SmoothingScale:
    """Return the best of the family; all ones where nothing is better."""
    trial = _Trial(problem)
    identity = torch.ones_like(problem.max_abs)
    before = trial.errors(identity)
    candidates = [
        (trial.errors(trial.member(a, b)).loss(before), a, b)
        for a in BY_ACTIVATIONS
        for b in BY_WEIGHTS
    ]
    loss, by_activations, by_weights = min(candidates)
    if not loss < 0:
        return SmoothingScale(identity, 0.0, 0.0)
    return SmoothingScale(trial.member(by_activations, by_weights), by_activations, by_weights)


class _Trial:
    """Runs a sample of inputs through evenly spaced rows of the linears, rounded or not."""

    def __init__(self, problem: SmoothingProblem) -> None:
        self._problem = problem
        share = SAMPLED_ROWS // len(problem.weights)
        self._rows = [weight[:: max(1, len(weight) // share)] for weight in problem.weights]
        self._outputs = [problem.inputs @ rows.T for rows in self._rows]
        self._power = [out.square().sum(-1).clamp(min=1e-12) for out in self._outputs]
        self._peaks = torch.stack([weight.abs().amax(0) for weight in problem.weights]).amax(0)

    def member(self, by_activations: float, by_weights: float) -> Tensor:
        """One of the family, its geometric mean 1."""
        shape = self._problem.shared
        inputs = _highest(self._problem.max_abs, shape).clamp(min=LEAST)
        peaks = _highest(self._peaks, shape).clamp(min=LEAST)
        scale = inputs**by_activations / peaks**by_weights
        return (scale / scale.log().mean().exp()).clamp(SMALLEST, LARGEST)

    def errors(self, scale: Tensor) -> RoundingErrors:
        """Errors of 8 bits where inputs are divided by a scale."""
        inputs = self._problem.inputs / scale
        weights = [
            Int8Weight.rounded(rows * scale, self._problem.group_size).dequantize()
            for rows in self._rows
        ]
        per_token = inputs.abs().amax(-1, keepdim=True)
        per_tensor = (self._problem.max_abs / scale).amax()
        return RoundingErrors(
            *(self._error(_rounded(inputs, peaks), weights) for peaks in (per_token, per_tensor))
        )

    def _error(self, inputs: Tensor, weights: list[Tensor]) -> float:
        errors = [
            ((inputs @ weight.T - output).square().sum(-1) / power).mean()
            for weight, output, power in zip(weights, self._outputs, self._power, strict=True)
        ]
        return float(torch.stack(errors).mean())


def _rounded(inputs: Tensor, peaks: Tensor) -> Tensor:
    step = (peaks / LARGEST_CODE).clamp(min=1e-20)
    return (inputs / step).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).mul_(step)


def _highest(values: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Give inputs that must share a scale the largest of their values."""
    if shape is None:
        return values
    return values.reshape(shape).amax(1, keepdim=True).expand(shape).reshape(-1)
