"""Bootstrap intervals that resample whole windows, whose tokens are not independent.

Percentile intervals from few windows are too narrow, since their spread is that of a sample. The
levels are therefore those at which a normal mean would get its t interval.
Source: T. Hesterberg, "What Teachers Should Know about the Bootstrap", 2015,
https://arxiv.org/abs/1411.5279, section 3.4 (the expanded percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from gemquant.numerics.t_distribution import quantile

RESAMPLES = 2000
CONFIDENCE = 0.95
_ELEMENTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; one window has none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class WindowBootstrap:
    """How often each window is drawn in each resample.

    draws: (resamples, windows) float64, each row adding up to the number of windows. Figures that
    are compared must use the same draws: that is what pairs them.
    """

    draws: Tensor

    @classmethod
    def seeded(cls, windows: int, seed: int) -> WindowBootstrap:
        """Draw as many windows as there are, with replacement, for every resample."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(windows, (RESAMPLES, windows), generator=generator)
        draws = torch.zeros(RESAMPLES, windows, dtype=torch.float64)
        return cls(draws.scatter_add_(1, chosen, torch.ones_like(draws)))

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self.draws.shape[1]

    def mean(self, values: Tensor, of: Callable[[Tensor], Tensor] = lambda mean: mean) -> Estimate:
        """Mean of values (windows, tokens), or what ``of`` makes of it, with its interval."""
        sums = values.cpu().double().sum(1)
        resampled = (self.draws @ sums) / (self.windows * values.shape[1])
        return self._estimate(of(sums.sum() / values.numel()), of(resampled))

    def quantiles(self, values: Tensor, levels: Sequence[float]) -> list[Estimate]:
        """Quantiles over all tokens of values (windows, tokens), each with its interval.

        They are interpolated linearly, as those of the drawn tokens written out would be.
        """
        ordered = _Ordered.of(values.cpu().double())
        once = torch.ones(1, self.windows, dtype=torch.float64)
        at_once = max(1, _ELEMENTS_AT_ONCE // (2 * len(levels) * ordered.values.shape[1]))
        (whole,), *parts = (
            ordered.quantiles(draws, levels) for draws in (once, *self.draws.split(at_once))
        )
        resampled = torch.cat(parts)
        return [self._estimate(whole[n], resampled[:, n]) for n in range(len(levels))]

    def _estimate(self, value: Tensor, resampled: Tensor) -> Estimate:
        if self.windows == 1:
            return Estimate(float(value))
        tail = expanded_tail(self.windows)
        low, high = torch.quantile(
            resampled, torch.tensor([tail, 1 - tail], dtype=torch.float64)
        ).tolist()
        return Estimate(float(value), low, high)


@dataclass(frozen=True)
class _Ordered:
    """All values in order, cut into blocks, so that few of them are looked at for a quantile.

    values: (blocks, size), the last padded. window: which window each is of; padding is of one
    after the last, which is never drawn. counts: (windows, blocks), how many of each.
    """

    values: Tensor
    window: Tensor
    counts: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Ordered:
        """Sort values (windows, tokens)."""
        windows, tokens = values.shape
        ordered, places = values.flatten().sort()
        size = math.isqrt(ordered.shape[0]) + 1
        padding = -ordered.shape[0] % size
        ordered = torch.cat([ordered, ordered[-1:].expand(padding)]).view(-1, size)
        window = torch.cat([places // tokens, torch.full((padding,), windows)]).view(-1, size)
        counts = torch.zeros(ordered.shape[0], windows + 1, dtype=torch.float64)
        counts.scatter_add_(1, window, torch.ones_like(ordered))
        return cls(ordered, window, counts.T[:-1])

    def quantiles(self, draws: Tensor, levels: Sequence[float]) -> Tensor:
        """Quantiles where each window is taken draws (resamples, windows) times.

        Returns (resamples, levels).
        """
        seen = (draws @ self.counts).cumsum(1)
        position = (seen[:, -1:] - 1) * torch.tensor(levels, dtype=torch.float64)
        lower = position.floor()
        upper = torch.minimum(lower + 1, seen[:, -1:] - 1)
        first, second = self._at(torch.cat([lower, upper], 1), draws, seen).chunk(2, 1)
        return first + (second - first) * (position - lower)

    def _at(self, places: Tensor, draws: Tensor, seen: Tensor) -> Tensor:
        """The values at places (resamples, n) among those drawn; seen: how many by each block."""
        block = torch.searchsorted(seen, places, right=True)
        earlier = torch.nn.functional.pad(seen, (1, 0)).gather(1, block)
        drawn = torch.nn.functional.pad(draws, (0, 1))
        taken = drawn.gather(1, self.window[block].flatten(1)).view(*block.shape, -1)
        # The value at place k is the first that more than k reach.
        inside = (taken.cumsum(2) <= (places - earlier)[:, :, None]).sum(2)
        return self.values[block, inside]


def stratified_mean(
    means: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    of: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Estimate:
    """Mean over the tokens of several texts, or what ``of`` makes of it, with its interval.

    means, tokens: of each window of each text. Windows are drawn from each text anew, as many as it
    has; a text of one window leaves no interval.
    """
    sums = torch.zeros(RESAMPLES + 1, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for seed, (values, sizes) in enumerate(zip(means, tokens, strict=True)):
        once = torch.ones(1, len(values), dtype=torch.float64)
        draws = torch.cat([once, WindowBootstrap.seeded(len(values), seed).draws])
        size = torch.tensor(sizes, dtype=torch.float64)
        sums += draws @ (torch.tensor(values, dtype=torch.float64) * size)
        counts += draws @ size
    whole, resampled = of(sums / counts).split([1, RESAMPLES])
    fewest = min(map(len, means))
    if fewest == 1:
        return Estimate(float(whole))
    tail = expanded_tail(fewest, len(means))
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return Estimate(float(whole), *torch.quantile(resampled, ends).tolist())


def expanded_tail(windows: int, texts: int = 1) -> float:
    """Level below the interval of so many windows of each text; 0.025 for infinitely many.

    >>> round(expanded_tail(8), 4)
    0.0057
    """
    normal = NormalDist()
    t = quantile(1 - (1 - CONFIDENCE) / 2, texts * (windows - 1))
    return normal.cdf(-math.sqrt(windows / (windows - 1)) * t)
