"""The difference of two models on the same samples, with its interval.

A metric is recomputed from its samples, and paired only where that gives lm-eval's own figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
Aggregate = Callable[[Array, Array], Array]
"""From sums of values and of weights over samples, (resamples,) each, to the metric."""


def _mean(values: Array, weights: Array) -> Array:
    return values / weights


def _perplexity(values: Array, weights: Array) -> Array:
    return np.asarray(np.exp(-values / weights))


def _bits(values: Array, weights: Array) -> Array:
    return -values / (weights * math.log(2))


AGGREGATES: tuple[Aggregate, ...] = (_mean, _perplexity, _bits)
"""Those that lm-eval's own metrics use, as ratios of sums over samples."""


@dataclass(frozen=True)
class Samples:
    """One metric's values, sample by sample.

    values: by sample; both models must have the same. A value is a number, or a sum with its weight
    (log-likelihood and words, for perplexities).
    """

    values: Mapping[Key, float | tuple[float, float]]


def drop(
    original: float,
    artifact: float,
    samples: tuple[Samples, Samples] | None,
    *,
    higher_is_better: bool,
    seed: int,
) -> Drop:
    """Original less artifact where more is better, the reverse elsewhere, with a 95 % interval.

    samples: of the original, of the artifact; None where a metric has none. The interval is the
    percentile bootstrap over samples, both models always resampled together.
    NotComparableError where the two answered different prompts.
    """
    sign = 1.0 if higher_is_better else -1.0
    value = sign * (original - artifact) + 0.0  # no −0
    if samples is None or not samples[0].values:
        return Drop(value=value, no_interval="the metric is not a sum over samples")
    if samples[0].values.keys() != samples[1].values.keys():
        raise NotComparableError("the two models were asked different questions")
    first, second = (_columns(each, samples[0].values) for each in samples)
    count = len(samples[0].values)
    aggregate = _aggregate(((original, *first), (artifact, *second)))
    if aggregate is None:
        return Drop(
            value=value, samples=count, no_interval="the metric is not a mean over its samples"
        )
    if count < 2:
        return Drop(value=value, samples=count, no_interval="one sample alone has none")
    differences = sign * _resampled(aggregate, first, second, seed) + 0.0
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Drop(value=value, low=float(low), high=float(high), samples=count)


def _columns(samples: Samples, order: Mapping[Key, object]) -> tuple[Array, Array]:
    """Values and weights, (samples,), a weight of one where there is none."""
    given = [samples.values[key] for key in order]
    pairs = [each if isinstance(each, tuple) else (each, 1.0) for each in given]
    values, weights = np.array(pairs, dtype=np.float64).T
    return values, weights


def _aggregate(models: Sequence[tuple[float, Array, Array]]) -> Aggregate | None:
    """The way of aggregating that gives both models' figures, if there is one."""
    for aggregate in AGGREGATES:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = [float(aggregate(v.sum(), w.sum())) for _, v, w in models]
        told = [figure for figure, _, _ in models]
        if all(
            math.isclose(a, b, rel_tol=_SAME, abs_tol=_SAME)
            for a, b in zip(found, told, strict=True)
        ):
            return aggregate
    return None


def _resampled(
    aggregate: Aggregate, first: tuple[Array, Array], second: tuple[Array, Array], seed: int
) -> Array:
    """First model's metric less the second's, (RESAMPLES,)."""
    generator = np.random.default_rng(seed)
    count = len(first[0])
    chance = np.full(count, 1 / count)
    columns = np.stack([*first, *second], axis=1)
    made = np.empty(RESAMPLES)
    at_once = max(1, 4_000_000 // count)
    for start in range(0, RESAMPLES, at_once):
        some = min(at_once, RESAMPLES - start)
        drawn = generator.multinomial(count, chance, size=some).astype(np.float64)
        a, b, c, d = (drawn @ columns).T
        made[start : start + some] = aggregate(a, b) - aggregate(c, d)
    return made
