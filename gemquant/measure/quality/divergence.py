"""Compare two models' predictions without ever holding a row of logits.

The vocabulary is walked in runs of rows. Each token keeps a running maximum and sum for either
model's softmax, and the sum of p · (log p − log q) relative to the running maximum of p; that is
enough for both cross-entropies, the Kullback-Leibler divergence and the agreement of the top token.
A running top-k holds the five most likely tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor

from gemquant.core.protocols import Progress, Silence
from gemquant.numerics import native
from gemquant.numerics.precision import accumulator

VOCABULARY_AT_ONCE = 4096
TOKENS_AT_ONCE = 512
TOP_K = 5
_GROUPS = 64
COMPARING = "comparing predictions"

Table = Callable[[int, int], Tensor]
"""Rows start to stop of a head, (stop − start, hidden), in the compute type on the device."""


@dataclass(frozen=True)
class TokenScores:
    """Per predicted token, (tokens,): two cross-entropies, a divergence, two agreements.

    nll_original, nll_quantized, divergence: nats. agreement: 1 where both rank one token first.
    shared: how many of the original's five most likely tokens are among the other's five.
    """

    nll_original: Tensor
    nll_quantized: Tensor
    divergence: Tensor
    agreement: Tensor
    shared: Tensor

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """The scores of consecutive tokens as one."""
        return cls(*(torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True)))

    def between(self, first: int, last: int) -> TokenScores:
        """The scores of tokens ``first`` to ``last``."""
        return TokenScores(*(column[first:last] for column in _columns(self)))


def _columns(scores: TokenScores) -> Sequence[Tensor]:
    return [getattr(scores, field.name) for field in fields(scores)]


class TopK:
    """The five largest logits seen so far, and their tokens: one row of state per token.

    Of tied logits any may be in it; equal logits give the same.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self._logits = torch.full((tokens, TOP_K), -torch.inf, device=device)
        self._ids = torch.full((tokens, TOP_K), -1, dtype=torch.int64, device=device)

    def see(self, logits: Tensor, rows: slice, start: int) -> None:
        """Add logits (tokens, run) of the vocabulary entries from ``start`` on."""
        largest, where = _largest(logits)
        both = torch.cat([self._logits[rows], largest], 1)
        ids = torch.cat([self._ids[rows], where + start], 1)
        self._logits[rows], columns = both.topk(TOP_K, 1)
        self._ids[rows] = ids.gather(1, columns)

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """Logits and tokens, (tokens, 5) each, the largest first."""
        return self._logits, self._ids

    def shared_with(self, other: TopK) -> Tensor:
        """How many of this one's tokens are the other's too, (tokens,) float32."""
        same = (self._ids[:, :, None] == other._ids[:, None, :]) & (self._ids[:, :, None] >= 0)
        return same.any(2).sum(1).float()


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The five largest of each row and their columns; fewer where a row is shorter.

    The five largest of a row lie in those five of its groups whose maxima are largest, so that a
    twelfth of it is sorted. Column c belongs to group c mod 64: maxima of such groups are vector
    instructions.
    """
    tokens, run = logits.shape
    depth = run // _GROUPS
    if run % _GROUPS or depth < TOP_K:
        values, columns = logits.topk(min(TOP_K, run), 1)
        return values, columns
    grid = logits.view(tokens, depth, _GROUPS)
    groups = grid.amax(1).topk(TOP_K, 1).indices
    members = grid.gather(2, groups[:, None, :].expand(-1, depth, -1)).reshape(tokens, -1)
    values, places = members.topk(TOP_K, 1)
    return values, places // TOP_K * _GROUPS + groups.gather(1, places % TOP_K)


@dataclass(frozen=True)
class _Tile:
    """Some of the original's logits, (tokens, run), as the other models need them.

    weights: exp(logit − running maximum). rescale: what earlier sums were multiplied by.
    """

    logits: Tensor
    weights: Tensor
    rescale: Tensor


class _Softmax:
    """A softmax over a vocabulary that arrives in pieces: one row of state per token.

    divergence: Σ p · (logit − this one's logit), times the original's total.
    """

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.maximum = torch.full((tokens,), -torch.inf, device=device)
        self.total = torch.zeros(tokens, dtype=accumulator(device), device=device)
        self.target = torch.zeros(tokens, device=device)
        # −1 until a number is seen: what is no number has no top.
        self.top = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        self.top_k = TopK(tokens, device)
        self.divergence = torch.zeros_like(self.total)

    def see(
        self, logits: Tensor, rows: slice, start: int, targets: Tensor, original: _Tile | None
    ) -> _Tile:
        """Add logits (tokens, run); original: the same of the model that this one is compared with.

        targets: of all tokens.
        """
        peak = logits.amax(-1)
        before = self.maximum[rows]
        # A row's maximum rises in few runs; only there is the index looked for.
        raised = (peak > before).nonzero()[:, 0]
        self.top[rows.start + raised] = logits[raised].argmax(-1) + start
        self.top_k.see(logits, rows, start)
        maximum = torch.maximum(before, peak)
        rescale = torch.exp(before - maximum)
        weights = (logits - maximum[:, None]).exp_()
        self.total[rows] = self.total[rows] * rescale + weights.sum(-1)
        self.maximum[rows] = maximum
        local = targets[rows] - start
        inside = (local >= 0) & (local < logits.shape[-1])
        found = logits.gather(1, local.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]
        self.target[rows] = torch.where(inside, found, self.target[rows])
        if original is not None:
            gained = torch.linalg.vecdot(original.weights, original.logits - logits)
            self.divergence[rows] = self.divergence[rows] * original.rescale + gained
        return _Tile(logits, weights, rescale)

    def log_total(self) -> Tensor:
        """Logarithm of the normalizer, (tokens,)."""
        return self.maximum + self.total.log()

    def nll(self) -> Tensor:
        """Negative log-likelihood of the targets, (tokens,) nats."""
        return self.log_total() - self.target


class _NativeSoftmax(_Softmax):
    """The same by a kernel, which goes over each logit of a tile once while it is in the cache."""

    def see(
        self, logits: Tensor, rows: slice, start: int, targets: Tensor, original: _Tile | None
    ) -> _Tile:
        """Add logits (tokens, run)."""
        logits, run, offset = logits.contiguous(), logits.shape[1], rows.start
        best, ids = self.top_k.state
        if original is None:
            weights, rescale = torch.empty_like(logits), torch.empty(targets.shape[0])
        else:
            weights, rescale = original.weights, original.rescale
        theirs = ctypes.c_void_p(None if original is None else original.logits.data_ptr())
        state = (ctypes.c_void_p * 4)(
            *(part.data_ptr() for part in (best, ids, self.total, self.target))
        )

        def part(first: int, last: int) -> None:
            native.call(
                "gq_softmax_add",
                *(logits, run, start, offset, offset + first, offset + last, targets),
                *(ctypes.byref(state), theirs, weights, rescale, self.divergence),
            )

        native.over_rows(part, logits.shape[0], threads=torch.get_num_threads(), at_least=8)
        self.maximum, self.top = best[:, 0], ids[:, 0]
        return _Tile(logits, weights, rescale)


Run = Callable[[slice], Tensor]
"""Logits of some tokens over a run of the vocabulary, (tokens, run) float32, softcap included."""


class Predictor(Protocol):
    """One model's predictions of consecutive tokens."""

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""

    def at(self, tokens: Tensor) -> Self:
        """The same of some of the tokens, by number or by mask."""

    def run(self, start: int, stop: int) -> Run:
        """Logits of vocabulary entries ``start`` to ``stop``."""


@dataclass(frozen=True)
class Head:
    """A model at its head: hidden states after the final norm (tokens, hidden), and its table.

    softcap: bound that logits are squeezed into by tanh, or None.
    """

    hidden: Tensor
    table: Table
    softcap: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return self.hidden.shape[0]

    def at(self, tokens: Tensor) -> Head:
        """The same of some of the tokens, by number or by mask."""
        return Head(self.hidden[tokens], self.table, self.softcap)

    def run(self, start: int, stop: int) -> Run:
        """Logits of vocabulary entries ``start`` to ``stop``, whose rows are read once."""
        rows = self.table(start, stop)

        def logits(tokens: slice) -> Tensor:
            return softcapped((self.hidden[tokens] @ rows.T).float(), self.softcap)

        return logits


def softcapped(logits: Tensor, bound: float | None) -> Tensor:
    """Squeeze logits into ±bound by tanh, where there is a bound."""
    return logits if bound is None else torch.tanh(logits / bound) * bound


@dataclass(frozen=True)
class Logits:
    """What a runtime itself computed: logits (tokens, vocabulary) float32, softcap included."""

    logits: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return self.logits.shape[0]

    def at(self, tokens: Tensor) -> Logits:
        """The same of some of the tokens, by number or by mask."""
        return Logits(self.logits[tokens])

    def run(self, start: int, stop: int) -> Run:
        """Logits of vocabulary entries ``start`` to ``stop``."""
        return lambda tokens: self.logits[tokens, start:stop]


@torch.no_grad()
def compare_predictions(
    original: Predictor,
    others: Sequence[Predictor],
    targets: Tensor,
    *,
    vocabulary: int,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Score every other model against the original on the same targets (tokens,).

    Each run of rows is read once per model; logits exist for one run and a few tokens at a time.
    """
    progress = progress or Silence()
    tokens, device, targets = targets.shape[0], targets.device, targets.contiguous()
    softmax = _NativeSoftmax if native.is_usable(targets) else _Softmax
    reference, *candidates = (softmax(tokens, device) for _ in (original, *others))
    progress.start(COMPARING, -(-vocabulary // VOCABULARY_AT_ONCE))
    for start in range(0, vocabulary, VOCABULARY_AT_ONCE):
        stop = min(start + VOCABULARY_AT_ONCE, vocabulary)
        original_run = original.run(start, stop)
        other_runs = [other.run(start, stop) for other in others]
        for first in range(0, tokens, TOKENS_AT_ONCE):
            rows = slice(first, first + TOKENS_AT_ONCE)
            tile = reference.see(original_run(rows), rows, start, targets, None)
            for run, candidate in zip(other_runs, candidates, strict=True):
                candidate.see(run(rows).to(device), rows, start, targets, tile)
        progress.advance(COMPARING)
    return [
        TokenScores(
            nll_original=reference.nll(),
            nll_quantized=each.nll(),
            divergence=each.divergence / reference.total
            - (reference.log_total() - each.log_total()),
            agreement=((reference.top == each.top) & (each.top >= 0)).float(),
            shared=reference.top_k.shared_with(each.top_k),
        )
        for each in candidates
    ]
