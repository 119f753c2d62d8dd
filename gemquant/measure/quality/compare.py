"""Compare two finished models, for a certificate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gemquant.calibration.windows import TokenWindows
from gemquant.core.progress import Progress
from gemquant.core.protocols import Weights
from gemquant.core.results import Certificate
from gemquant.measure.quality.measure import LevelScores, Subject, measure
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.summary import mean_over_windows, summarise


def compare(
    original: Weights,
    quantized: Weights,
    evaluation: Sequence[TokenWindows],
    *,
    runtime: NativeRuntime | None = None,
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[Certificate]:
    """Measure what was lost: level ``reference``, and ``native`` where a runtime is given.

    runtime: executes the finished artifact by foreign code; it holds the whole model.
    Raises what ``measure`` does.
    """
    load = None if runtime is None else lambda: runtime
    (measured,) = measure(
        original,
        [Subject("The artifact", quantized, load)],
        evaluation,
        device=device,
        compute_dtype=compute_dtype,
        progress=progress,
    )
    return [_certificate(level) for level in measured.levels]


def _certificate(level: LevelScores) -> Certificate:
    divergences = level.from_reference
    return Certificate(
        level.level,
        level.runtime,
        [
            summarise(windows.name, scores, windows=windows.ids.shape[0])
            for windows, scores in level.slices
        ],
        level.token_stream,
        level.not_run,
        kl_from_reference=None
        if divergences is None
        else mean_over_windows(divergences, windows=len(level.slices)),
    )
