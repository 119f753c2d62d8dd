"""From scores per token to means with standard errors over windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gemquant.core.results import Measurement, SliceResult
from gemquant.measure.quality.divergence import TokenScores

TAIL = 0.999


def summarise(name: str, scores: TokenScores, *, windows: int) -> SliceResult:
    """Summarise one slice; scores are (windows · predicted tokens,) in the order of windows."""
    nll_original = _by_window(scores.nll_original, windows)
    nll_quantized = _by_window(scores.nll_quantized, windows)
    divergence = _by_window(scores.divergence, windows)
    return SliceResult(
        slice=name,
        windows=windows,
        tokens=scores.divergence.shape[0],
        perplexity_original=_perplexity(nll_original),
        perplexity_quantized=_perplexity(nll_quantized),
        kl_mean=_mean(divergence),
        kl_p999=_tail(divergence),
        top1_agreement=_mean(_by_window(scores.agreement, windows)),
    )


def mean_over_windows(values: Tensor, *, windows: int) -> Measurement:
    """Mean of values (windows · tokens,) with its standard error over windows."""
    return _mean(_by_window(values, windows))


def _by_window(values: Tensor, windows: int) -> Tensor:
    return values.cpu().double().reshape(windows, -1)


def _mean(values: Tensor) -> Measurement:
    means = values.mean(1)
    error = means.std(unbiased=True) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Measurement(float(values.mean()), float(error))


def _perplexity(nll: Tensor) -> Measurement:
    """exp of the mean; its error by the delta method."""
    mean = _mean(nll)
    value = math.exp(mean.value)
    return Measurement(value, value * mean.standard_error)


def _tail(divergence: Tensor) -> Measurement:
    """A high percentile over all tokens; its error by leaving out one window at a time."""
    windows = divergence.shape[0]
    value = float(torch.quantile(divergence.flatten(), TAIL))
    if windows == 1:
        return Measurement(value, 0.0)
    without = torch.stack(
        [
            torch.quantile(torch.cat([divergence[:n], divergence[n + 1 :]]).flatten(), TAIL)
            for n in range(windows)
        ]
    )
    spread = (without - without.mean()).square().sum() * (windows - 1) / windows
    return Measurement(value, float(spread.sqrt()))
