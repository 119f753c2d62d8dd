"""Compare two models' predictions without ever holding a row of logits.

The vocabulary is walked in runs of rows. Each token keeps a running maximum and sum for either
model's softmax, and the sum of p · (log p − log q) relative to the running maximum of p; that is
enough for both cross-entropies, the Kullback-Leibler divergence and the agreement of the top token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.numerics.accumulate import accumulator

VOCABULARY_AT_ONCE = 8192
TOKENS_AT_ONCE = 512

Table = Callable[[int, int], Tensor]
"""Rows start to stop of a head, (stop − start, hidden), in the compute type on the device."""


@dataclass(frozen=True)
class TokenScores:
    """Per predicted token, (tokens,): two cross-entropies, a divergence, an agreement.

    nll_original, nll_quantized, divergence: nats. agreement: 1 where both rank one token first.
    """

    nll_original: Tensor
    nll_quantized: Tensor
    divergence: Tensor
    agreement: Tensor

    def between(self, first: int, last: int) -> TokenScores:
        """The scores of tokens ``first`` to ``last``."""
        return TokenScores(
            self.nll_original[first:last],
            self.nll_quantized[first:last],
            self.divergence[first:last],
            self.agreement[first:last],
        )


class _Softmax:
    """A softmax over a vocabulary that arrives in pieces: one row of state per token."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.maximum = torch.full((tokens,), -torch.inf, device=device)
        self.total = torch.zeros(tokens, dtype=accumulator(device), device=device)
        self.target = torch.zeros(tokens, device=device)
        # −1 until a number is seen: what is no number has no top.
        self.top = torch.full((tokens,), -1, dtype=torch.int64, device=device)

    def see(self, logits: Tensor, rows: slice, start: int, targets: Tensor) -> Tensor:
        """Add logits (tokens, run); return exp(logit − running maximum)."""
        peak = logits.amax(-1)
        before = self.maximum[rows]
        # A row's maximum rises in few runs; only there is the index looked for.
        raised = (peak > before).nonzero()[:, 0]
        self.top[rows.start + raised] = logits[raised].argmax(-1) + start
        maximum = torch.maximum(before, peak)
        rescale = torch.exp(before - maximum)
        weights = (logits - maximum[:, None]).exp_()
        self.total[rows] = self.total[rows] * rescale + weights.sum(-1)
        self.maximum[rows] = maximum
        local = targets - start
        inside = (local >= 0) & (local < logits.shape[-1])
        found = logits.gather(1, local.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]
        self.target[rows] = torch.where(inside, found, self.target[rows])
        self._rescale = rescale
        return weights

    @property
    def rescale(self) -> Tensor:
        """What the last ``see`` multiplied earlier sums of its tokens by."""
        return self._rescale

    def log_total(self) -> Tensor:
        """Logarithm of the normalizer, (tokens,)."""
        return self.maximum + self.total.log()

    def nll(self) -> Tensor:
        """Negative log-likelihood of the targets, (tokens,) nats."""
        return self.log_total() - self.target


@dataclass(frozen=True)
class Predictor:
    """One model at its head: hidden states after the final norm (tokens, hidden), and its table."""

    hidden: Tensor
    table: Table


@torch.no_grad()
def compare_predictions(
    original: Predictor,
    others: list[Predictor],
    targets: Tensor,
    *,
    vocabulary: int,
    softcap: float | None,
) -> list[TokenScores]:
    """Score every other model against the original on the same targets (tokens,).

    Each run of rows is read once per model; logits exist for one run and a few tokens at a time.
    """
    tokens, device = targets.shape[0], original.hidden.device
    reference = _Softmax(tokens, device)
    candidates = [_Softmax(tokens, device) for _ in others]
    divergences = [torch.zeros(tokens, dtype=accumulator(device), device=device) for _ in others]
    for start in range(0, vocabulary, VOCABULARY_AT_ONCE):
        stop = min(start + VOCABULARY_AT_ONCE, vocabulary)
        original_rows = original.table(start, stop)
        other_rows = [other.table(start, stop) for other in others]
        for first in range(0, tokens, TOKENS_AT_ONCE):
            rows = slice(first, first + TOKENS_AT_ONCE)
            logits = _logits(original.hidden[rows], original_rows, softcap)
            weights = reference.see(logits, rows, start, targets[rows])
            for other, table, softmax, divergence in zip(
                others, other_rows, candidates, divergences, strict=True
            ):
                theirs = _logits(other.hidden[rows], table, softcap)
                softmax.see(theirs, rows, start, targets[rows])
                gained = torch.linalg.vecdot(weights, logits - theirs)
                divergence[rows] = divergence[rows] * reference.rescale + gained
    return [
        TokenScores(
            nll_original=reference.nll(),
            nll_quantized=softmax.nll(),
            divergence=divergence / reference.total - (reference.log_total() - softmax.log_total()),
            agreement=((reference.top == softmax.top) & (softmax.top >= 0)).float(),
        )
        for softmax, divergence in zip(candidates, divergences, strict=True)
    ]


def _logits(hidden: Tensor, rows: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden @ rows.T).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits
