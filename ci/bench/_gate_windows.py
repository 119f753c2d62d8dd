"""Measure noise on one layer, and equal artifacts, as `gemquant eval` would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from _noisy_weights import NoisyWeights

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import Progress, Weights
from gemquant.measure.quality.measure import Subject, measure

ROUNDING = 0.08
"""Noise on all linears of the baseline, relative: about what 4 bits in groups of 128 leave."""


def baseline_weights(model: Weights, *, seed: int, scale: float = 1.0) -> NoisyWeights:
    """A model as a quantizer leaves it; another seed makes an equally good one."""
    layers = range(model.config["num_hidden_layers"])
    return NoisyWeights(model, dict.fromkeys(layers, ROUNDING * scale), seed)


def worse_weights(model: Weights, layer: int, strength: float, *, seed: int) -> NoisyWeights:
    """The baseline with more noise on one layer."""
    return NoisyWeights(baseline_weights(model, seed=0), {layer: strength}, seed)


def measured_levels(
    model: Weights,
    candidates: Mapping[str, Weights],
    slices: Sequence[TokenWindows],
    progress: Progress | None = None,
) -> dict[str, LevelEvaluation]:
    """Level reference of every candidate, all in one pass."""
    subjects = [Subject(name, weights) for name, weights in candidates.items()]
    found = measure(model, subjects, slices, progress=progress)
    return {name: levels[0] for name, levels in zip(candidates, found, strict=True)}
