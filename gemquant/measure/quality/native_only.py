"""Measure artifacts whose files only their runtime can read: level ``native`` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.core.progress import Progress
from gemquant.core.protocols import Weights
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.measure.quality.divergence import Head
from gemquant.measure.quality.measure import LevelScores, Measured
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from gemquant.numerics.precision import fast_products


@dataclass(frozen=True)
class UnreadSubject:
    """A finished artifact. load: its runtime, held until it was compared.

    unread: why its weights cannot be decoded, for level ``reference``.
    """

    name: str
    load: Callable[[], AbstractContextManager[NativeRuntime]]
    unread: str


@fast_products()
def measure_unread(
    original: Weights,
    subjects: Sequence[UnreadSubject],
    evaluation: Sequence[TokenWindows],
    *,
    device: str,
    compute_dtype: torch.dtype,
    progress: Progress,
) -> list[Measured]:
    """Stream the original once, then compare what each runtime predicts of the same windows.

    UnsupportedError if the original's predictions are not finite, ArtifactError if an artifact's
    are not.
    """
    skeleton = Skeleton(original.config, device=device, dtype=compute_dtype)
    streams = EvaluationStreams(skeleton, evaluation)
    streams.embed(original, [])
    assert streams.original is not None
    progress.start("evaluating layers", skeleton.layers)
    for index in range(skeleton.layers):
        names = layer_parameters(original.config, index)
        weights = layer_weights(original, layer_prefix(index), names, skeleton)
        streams.original.advance(index, weights)
        progress.advance("evaluating layers")
    model = (final_norm(original, skeleton), head_table(original, skeleton))
    measured = []
    for each in subjects:
        reference = LevelScores(
            "reference",
            reference_runtime(skeleton),
            token_stream=streams.digest,
            not_run=each.unread,
        )
        with each.load() as runtime:
            native = _native(each, runtime, streams, model, progress)
        measured.append(Measured([reference, native], (), ()))
    return measured


def _native(
    subject: UnreadSubject,
    runtime: NativeRuntime,
    streams: EvaluationStreams,
    model: tuple[torch.Tensor, Callable[[int, int], torch.Tensor]],
    progress: Progress,
) -> LevelScores:
    if runtime.not_run is not None:
        return LevelScores(
            "native", runtime.runtime, token_stream=streams.digest, not_run=runtime.not_run
        )
    streams = streams.beginnings(tokens=runtime.max_tokens, window=runtime.max_window)
    progress.note(f"running {runtime.runtime}")
    before: Head = streams.predictors([model])[0]
    scores, _ = streams.compare_foreign(before, None, runtime.predictions(streams))
    for windows, part in zip(streams.slices, scores, strict=True):
        if not torch.isfinite(part.nll_original).all():
            raise UnsupportedError(
                f"The original's predictions of slice {windows.name} are not finite.",
                hint="Compute in float32: --dtype float32.",
            )
        if not torch.isfinite(part.nll_quantized).all():
            raise ArtifactError(
                f"{subject.name}: {runtime.runtime}: predictions of slice {windows.name} are not "
                "finite.",
                hint="gemma-3-4b needed --quantized-dtype w8a8_g128 or --hybrid-rate 0.25.",
            )
    pairs = tuple(zip(streams.slices, scores, strict=True))
    return LevelScores("native", runtime.runtime, pairs, streams.digest)
