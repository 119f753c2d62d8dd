"""Which layer is worse: where hidden states begin to lie further off than the baseline's did."""

from __future__ import annotations

from collections.abc import Sequence

from gemquant.core.artifact.evaluation import Level, LevelEvaluation
from gemquant.measure.gate.verdict import LayerFinding

# What lies below is rounding of the arithmetic, and no ratio of it says anything.
_FLOOR = 1e-8
# The squared error of a layer that was changed rises by more; below it the loss has another origin.
SMALLEST_RISE = 0.02


def worst_layer(
    level: Level, name: str, before: LevelEvaluation, now: LevelEvaluation
) -> LayerFinding | None:
    """Find the layer of a slice at which the error rises most; None where it rises nowhere.

    An error that a layer adds is carried on by all layers behind it, and so is the baseline's
    own; their ratio stays or falls there, whatever a layer makes of the error that it is given. So
    the layer to blame is the one at which the ratio of the squared relative errors jumps highest.
    """
    old = next((each.relative for each in before.layers_accumulated if each.slice == name), ())
    new = next((each.relative for each in now.layers_accumulated if each.slice == name), ())
    if not old or len(old) != len(new):
        return None
    ratios = _ratios(old, new)
    jumps = [ratio - previous for previous, ratio in zip([1.0, *ratios], ratios, strict=False)]
    layer = max(range(len(jumps)), key=jumps.__getitem__)
    if jumps[layer] < SMALLEST_RISE:
        return None
    return LayerFinding(
        level=level,
        slice=name,
        layer=layer,
        baseline=old[layer],
        value=new[layer],
        ratio_before=ratios[layer - 1] if layer else 1.0,
        ratio=ratios[layer],
    )


def _ratios(old: Sequence[float], new: Sequence[float]) -> list[float]:
    floor = _FLOOR + 1e-4 * max(old) ** 2
    return [(n * n + floor) / (o * o + floor) for o, n in zip(old, new, strict=True)]
