"""How much worse, window by window: a mean over tokens, with confidence bounds from its pairs.

The unit that varies is the window: tokens of one window are not independent of one another. Both
measurements are of the same windows, so what makes one text harder than another cancels. There are
often few windows; Student's t allows for that; resampling them (percentiles, BCa) gives bounds that
are too narrow. `ci/bench/gate` measures what the bounds are worth on differences of real artifacts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gemquant.numerics.t_distribution import quantile

_MOST_WINDOWS = 1_000_000


@dataclass(frozen=True)
class Stratum:
    """One slice: a figure of each of its windows, or a difference, and the tokens in each."""

    tokens: Sequence[int]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Over tokens."""
        weighted = math.fsum(n * d for n, d in zip(self.tokens, self.values, strict=True))
        return weighted / sum(self.tokens)

    @property
    def variance(self) -> float:
        """Of the mean, over windows; 0 for a window that stands alone."""
        count, total, mean = len(self.tokens), sum(self.tokens), self.mean
        if count == 1:
            return 0.0
        squares = math.fsum(
            (n / total * (d - mean)) ** 2 for n, d in zip(self.tokens, self.values, strict=True)
        )
        return squares * count / (count - 1)


@dataclass(frozen=True)
class Increase:
    """A mean difference with its standard error.

    freedom: degrees of freedom of the error; 0 where a window stood alone, and nothing bounds it.
    identical: no window differs at all.
    """

    mean: float
    error: float
    freedom: int
    windows: int
    identical: bool

    def low(self, alpha: float) -> float | None:
        """The true difference is below this with probability alpha at most."""
        return None if self.freedom == 0 else self.mean - self.width(alpha)

    def high(self, alpha: float) -> float | None:
        """The true difference is above this with probability alpha at most."""
        return None if self.freedom == 0 else self.mean + self.width(alpha)

    def width(self, alpha: float) -> float:
        """Distance of a bound from the mean."""
        return 0.0 if self.error == 0 else self.error * quantile(1 - alpha, self.freedom)

    def windows_to_decide(self, budget: float, *, alpha: float, family_alpha: float) -> int | None:
        """About how many windows would show that it is within budget, or that it is a loss.

        The spread is taken to stay as it is. None where no number would: at the budget exactly.
        """
        if self.freedom == 0:
            return None
        spread = self.error * math.sqrt(self.windows)
        needed = []
        for gap, risk in ((budget - self.mean, alpha), (self.mean, family_alpha)):
            if gap > 0:
                windows = self.windows
                # Each step takes the t of the count that it found; the last ones change little.
                for _ in range(8):
                    t = quantile(1 - risk, max(windows - 1, 1))
                    windows = min(max(2, math.ceil((t * spread / gap) ** 2)), _MOST_WINDOWS)
                needed.append(windows)
        fewest = min(needed, default=_MOST_WINDOWS)
        return None if fewest >= _MOST_WINDOWS else max(fewest, self.windows + 1)


def increase(strata: Sequence[Stratum]) -> Increase:
    """The mean over all tokens of all strata; strata are held fixed, their windows vary.

    Degrees of freedom are Welch and Satterthwaite's, rounded down.
    """
    total = sum(sum(each.tokens) for each in strata)
    shares = [sum(each.tokens) / total for each in strata]
    parts = [share**2 * each.variance for share, each in zip(shares, strata, strict=True)]
    counts = [len(each.tokens) for each in strata]
    variance = math.fsum(parts)
    return Increase(
        mean=math.fsum(share * each.mean for share, each in zip(shares, strata, strict=True)),
        error=math.sqrt(variance),
        freedom=_freedom(parts, counts, variance),
        windows=sum(counts),
        identical=not any(value for each in strata for value in each.values),
    )


def _freedom(parts: Sequence[float], counts: Sequence[int], variance: float) -> int:
    if min(counts) == 1:
        return 0
    if variance == 0:
        return sum(counts) - len(counts)
    welch = math.fsum(
        (part / variance) ** 2 / (count - 1) for part, count in zip(parts, counts, strict=True)
    )
    return max(1, math.floor(1 / welch + 1e-9))
