"""Student's t for whole degrees of freedom, in closed form."""

from __future__ import annotations

import math
from functools import lru_cache

MOST = 1000
"""More degrees of freedom count as this many: a bound that is 0.2 % wider at most."""


def probability(t: float, freedom: int) -> float:
    """Probability that Student's t with ``freedom`` degrees of freedom is at most ``t``.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    >>> round(probability(2.0, 10), 6)
    0.963306
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle)
    term = total = 1.0 if freedom % 2 == 0 else cosine
    for number in range(2 + freedom % 2, freedom, 2):
        term *= cosine * cosine * (number - 1) / number
        total += term
    if freedom % 2 == 0:
        central = math.sin(angle) * total
    elif freedom == 1:
        central = 2 * angle / math.pi
    else:
        central = 2 * (angle + math.sin(angle) * total) / math.pi
    return (1 + central) / 2


@lru_cache(maxsize=4096)
def quantile(confidence: float, freedom: int) -> float:
    """The t that is exceeded with probability 1 − confidence; confidence in (0.5, 1).

    >>> round(quantile(0.975, 3), 4)
    3.1824
    """
    freedom = min(freedom, MOST)
    low, high = 0.0, 1.0
    while probability(high, freedom) < confidence:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle, freedom) < confidence else (low, middle)
    return high
