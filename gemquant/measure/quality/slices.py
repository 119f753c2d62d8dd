"""From scores per token to what an evaluation document holds of a level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import (
    Interval,
    LayerErrors,
    LevelEvaluation,
    SliceEvaluation,
    WindowColumns,
)
from gemquant.errors import ArtifactError
from gemquant.measure.quality.divergence import TokenScores
from gemquant.measure.quality.layer_error import LayerError
from gemquant.measure.quality.measure import LevelScores, Measured
from gemquant.measure.quality.top_k import COUNT
from gemquant.numerics.bootstrap import Estimate, WindowBootstrap

QUANTILES = (0.5, 0.99, 0.999)
LARGEST_NLL = math.log(1e300)
"""Nats per token; the perplexity of more than this is beyond float64."""


def level_evaluations(name: str, measured: Measured, *, seed: int) -> tuple[LevelEvaluation, ...]:
    """Summarise what was measured of an artifact, level by level.

    seed: of the resampling of windows. ArtifactError where a perplexity is beyond float64.
    """
    names = [windows.name for windows, _ in measured.levels[0].slices]
    return tuple(
        LevelEvaluation(
            level=each.level,
            runtime=each.runtime,
            not_run=each.not_run,
            slices=tuple(_slice(name, *pair, seed=seed) for pair in each.slices),
            kl_from_reference=_from_reference(each, seed),
            layers_accumulated=_layers(names, measured.accumulated)
            if each.level == "reference"
            else (),
            layers_own=_layers(names, measured.own) if each.level == "reference" else (),
        )
        for each in measured.levels
    )


def _slice(
    artifact: str, windows: TokenWindows, scores: TokenScores, *, seed: int
) -> SliceEvaluation:
    count, seq_len = windows.ids.shape

    def by_window(values: Tensor) -> Tensor:
        return values.cpu().double().reshape(count, -1)

    before, after = by_window(scores.nll_original), by_window(scores.nll_quantized)
    divergence = by_window(scores.divergence)
    top1, top5 = by_window(scores.agreement), by_window(scores.shared) / COUNT
    for who, nll in (("the original", before), (artifact, after)):
        if (worst := float(nll.mean(1).max())) > LARGEST_NLL:
            raise ArtifactError(
                f"{who}, slice {windows.name}: {worst:,.0f} nats per token: it predicts nothing.",
                hint="Is it the right model? gemquant show ARTIFACT says what was made of what.",
            )
    # The same windows are drawn for every figure: original and artifact stay paired.
    bootstrap = WindowBootstrap.seeded(count, seed)
    median, p99, p999 = map(_interval, bootstrap.quantiles(divergence, QUANTILES))
    return SliceEvaluation(
        slice=windows.name,
        seq_len=seq_len,
        token_stream=windows.digest,
        windows=WindowColumns(
            tokens=(seq_len - 1,) * count,
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


def _from_reference(level: LevelScores, seed: int) -> Interval | None:
    if level.from_reference is None:
        return None
    values = level.from_reference.reshape(len(level.slices), -1)
    return _mean(WindowBootstrap.seeded(values.shape[0], seed), values)


def _layers(
    names: Sequence[str], errors: Sequence[Sequence[LayerError]]
) -> tuple[LayerErrors, ...]:
    return tuple(
        LayerErrors(
            slice=name,
            relative=tuple(layer.relative for layer in layers),
            cosine=tuple(layer.cosine for layer in layers),
        )
        for name, layers in zip(names, errors, strict=False)
    )


def _means(values: Tensor) -> tuple[float, ...]:
    return tuple(values.mean(1).tolist())


def _mean(
    bootstrap: WindowBootstrap, values: Tensor, of: Callable[[Tensor], Tensor] | None = None
) -> Interval:
    return _interval(bootstrap.mean(values, of) if of else bootstrap.mean(values))


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)
