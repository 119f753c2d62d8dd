"""The difference of two models on the same samples, with its interval.

A metric is recomputed from its samples, and paired only if that gives lm-eval's figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gemquant.errors import NotComparableError
from gemquant.measure.tasks.document import Drop

RESAMPLES = 2000
LEVEL = 0.95
_SAME = 1e-9

Array = npt.NDArray[np.float64]
Key = tuple[str, int, str]
"""Which sample: the task, the number of its document, the hash of the prompt."""
Samples = Mapping[Key, float | tuple[float, float]]
"""One metric's values: numbers, or sums with weights (log-likelihood and words in perplexities)."""
Aggregate = Callable[[Array, Array], Array]
"""From sums of values and of weights over samples, (resamples,) each, to the metric."""


def _mean(values: Array, weights: Array) -> Array:
    return values / weights


def _perplexity(values: Array, weights: Array) -> Array:
    return np.asarray(np.exp(-values / weights))


def _bits(values: Array, weights: Array) -> Array:
    return -values / (weights * math.log(2))


AGGREGATES: tuple[Aggregate, ...] = (_mean, _perplexity, _bits)
"""Those of lm-eval's metrics, as ratios of sums over samples."""


def drop(
    original: float,
    artifact: float,
    samples: tuple[Samples, Samples] | None,
    *,
    higher_is_better: bool,
    seed: int,
) -> Drop:
    """Return original minus artifact if more is better, else the reverse, with a 95 % interval.

    samples: of the original and of the artifact; None if a metric has none. The interval is the
    percentile bootstrap over samples; both models are resampled together.
    NotComparableError if the two answered different prompts.
    """
    sign = 1.0 if higher_is_better else -1.0
    value = sign * (original - artifact) + 0.0  # no −0
    if samples is None or not samples[0]:
        return Drop(value=value, no_interval="the metric is not a sum over samples")
    if samples[0].keys() != samples[1].keys():
        raise NotComparableError("the two models answered different questions")
    first, second = (_columns(each, samples[0]) for each in samples)
    count = len(samples[0])
    aggregate = _aggregate(((original, *first), (artifact, *second)))
    if aggregate is None:
        return Drop(
            value=value, samples=count, no_interval="the metric is not a mean over its samples"
        )
    if count < 2:
        return Drop(value=value, samples=count, no_interval="a single sample has none")
    differences = sign * _resampled(aggregate, first, second, seed) + 0.0
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Drop(value=value, low=float(low), high=float(high), samples=count)


def _columns(samples: Samples, order: Mapping[Key, object]) -> tuple[Array, Array]:
    """Return values and weights, (samples,); weights are one if there are none."""
    pairs = [v if isinstance(v, tuple) else (v, 1.0) for v in (samples[key] for key in order)]
    values, weights = np.array(pairs, dtype=np.float64).T
    return values, weights


def _aggregate(models: Sequence[tuple[float, Array, Array]]) -> Aggregate | None:
    """Return the aggregate that gives both models' figures, if there is one."""
    for aggregate in AGGREGATES:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            pairs = [(figure, float(aggregate(v.sum(), w.sum()))) for figure, v, w in models]
        if all(math.isclose(a, b, rel_tol=_SAME, abs_tol=_SAME) for a, b in pairs):
            return aggregate
    return None


def _resampled(
    aggregate: Aggregate, first: tuple[Array, Array], second: tuple[Array, Array], seed: int
) -> Array:
    """Return the first model's metric minus the second's, (RESAMPLES,)."""
    generator = np.random.default_rng(seed)
    count = len(first[0])
    chance = np.full(count, 1 / count)
    columns = np.stack([*first, *second], axis=1)
    differences = np.empty(RESAMPLES)
    at_once = max(1, 4_000_000 // count)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = generator.multinomial(count, chance, size=size).astype(np.float64)
        a, b, c, d = (drawn @ columns).T
        differences[start : start + size] = aggregate(a, b) - aggregate(c, d)
    return differences
