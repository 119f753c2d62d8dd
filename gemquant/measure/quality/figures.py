"""From scores per token and hidden states to the figures of an evaluation record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.calibration.stream import TOKENS_AT_ONCE
from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import (
    Interval,
    LayerErrors,
    SliceEvaluation,
    WindowColumns,
)
from gemquant.errors import ArtifactError
from gemquant.measure.quality.divergence import TOP_K, TokenScores
from gemquant.numerics.bootstrap import Estimate, WindowBootstrap

QUANTILES = (0.5, 0.99, 0.999)
LARGEST_NLL = math.log(1e300)
"""Nats per token; the perplexity of more than this is beyond float64."""


def slice_evaluation(
    windows: TokenWindows, scores: TokenScores, *, seed: int, artifact: str = "the artifact"
) -> SliceEvaluation:
    """Summarise one slice; scores are (windows · measured tokens,) in the order of windows.

    seed: of the resampling of windows. artifact: its name, for messages.
    ArtifactError where a perplexity is beyond float64.
    """
    count, seq_len = windows.ids.shape

    def by_window(values: Tensor) -> Tensor:
        return values.cpu().double().reshape(count, -1)

    before, after = by_window(scores.nll_original), by_window(scores.nll_quantized)
    divergence = by_window(scores.divergence)
    top1, top5 = by_window(scores.agreement), by_window(scores.shared) / TOP_K
    for who, nll in (("the original", before), (artifact, after)):
        if (worst := float(nll.mean(1).max())) > LARGEST_NLL:
            raise ArtifactError(
                f"{who}, slice {windows.name}: {worst:,.0f} nats per token: it predicts nothing.",
                hint="Is it the right model? gemquant show ARTIFACT prints what it was made from.",
            )
    # The same windows are drawn for every figure: original and artifact stay paired.
    bootstrap = WindowBootstrap.seeded(count, seed)
    median, p99, p999 = map(_interval, bootstrap.quantiles(divergence, QUANTILES))
    return SliceEvaluation(
        slice=windows.name,
        seq_len=seq_len,
        token_stream=windows.digest,
        windows=WindowColumns(
            tokens=(before.shape[1],) * count,
            nll_original=_means(before),
            nll_quantized=_means(after),
            kl_mean=_means(divergence),
            top1=_means(top1),
            top5=_means(top5),
        ),
        perplexity_original=_mean(bootstrap, before, torch.exp),
        perplexity_quantized=_mean(bootstrap, after, torch.exp),
        nll_increase=_mean(bootstrap, after - before),
        kl_mean=_mean(bootstrap, divergence),
        kl_median=median,
        kl_p99=p99,
        kl_p999=p999,
        kl_max=float(divergence.max()),
        top1=_mean(bootstrap, top1),
        top5=_mean(bootstrap, top5),
    )


def mean_over_windows(values: Tensor, windows: int, *, seed: int) -> Interval:
    """Mean of values (windows · tokens,) with its interval over windows."""
    return _mean(WindowBootstrap.seeded(windows, seed), values.reshape(windows, -1))


def quantile_over_windows(values: Tensor, level: float, *, seed: int) -> Interval:
    """Quantile of one value per window with its interval over windows."""
    bootstrap = WindowBootstrap.seeded(len(values), seed)
    return _interval(bootstrap.quantiles(values[:, None], [level])[0])


def _means(values: Tensor) -> tuple[float, ...]:
    return tuple(values.mean(1).tolist())


def _mean(
    bootstrap: WindowBootstrap, values: Tensor, of: Callable[[Tensor], Tensor] = lambda mean: mean
) -> Interval:
    return _interval(bootstrap.mean(values, of))


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


# ---------------------------------------------------------------- layers


@dataclass(frozen=True)
class LayerError:
    """One layer on one slice.

    relative: norm of the difference over the norm of the original's, all tokens together.
    cosine: mean over tokens. finite: whether all values are numbers.
    """

    relative: float
    cosine: float
    finite: bool


@torch.no_grad()
def layer_error(original: Tensor, other: Tensor) -> LayerError:
    """Compare hidden states (windows, tokens, hidden) without the first token of each window.

    Every window begins with the same BOS, whose state is so much larger than all others that it
    would hide them.
    """
    at_once = max(1, TOKENS_AT_ONCE // original.shape[1])
    parts = [
        _squares(original[start : start + at_once, 1:], other[start : start + at_once, 1:])
        for start in range(0, original.shape[0], at_once)
    ]
    ours, theirs, product, difference = torch.cat(parts, 1)
    norms = (ours * theirs).sqrt()
    # A state of nothing but zeros points nowhere; two of them do not differ. Float32 squares may
    # make a cosine a little larger than 1.
    cosine = torch.where(norms > 0, product / norms, (ours == theirs).double()).clamp(-1, 1)
    return LayerError(
        relative=float((difference.sum() / ours.sum()).sqrt()),
        cosine=float(cosine.mean()),
        finite=bool(torch.isfinite(ours + theirs).all()),
    )


def layer_errors(
    slices: Sequence[TokenWindows], errors: Sequence[Sequence[LayerError]]
) -> tuple[LayerErrors, ...]:
    """The errors of all layers, a list per slice, as they are recorded."""
    return tuple(
        LayerErrors(
            slice=windows.name,
            relative=tuple(layer.relative for layer in layers),
            cosine=tuple(layer.cosine for layer in layers),
        )
        for windows, layers in zip(slices, errors, strict=False)
    )


def _squares(original: Tensor, other: Tensor) -> Tensor:
    """|o|², |q|², o · q and |q − o|² of every token: (4, tokens) float64 on the CPU."""
    original, other = (states.reshape(-1, states.shape[-1]).float() for states in (original, other))
    difference = other - original
    pairs = ((original, original), (other, other), (original, other), (difference, difference))
    return torch.stack([torch.linalg.vecdot(*pair) for pair in pairs]).cpu().double()
