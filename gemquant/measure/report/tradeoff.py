"""Size against divergence, and the artifacts that none beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level, LevelEvaluation
from gemquant.core.artifact.losses import Overall
from gemquant.errors import UsageError


@dataclass(frozen=True)
class Point:
    """One artifact's size and mean divergence, nats per token.

    on_front: no other artifact is smaller and as close, or closer and as small.
    """

    label: str
    size_bytes: int
    kl_mean: float
    on_front: bool


@dataclass(frozen=True)
class Tradeoff:
    """Size against divergence at one level; slice: None for all slices together."""

    level: Level
    slice: str | None
    points: Sequence[Point]


def tradeoffs(artifacts: Mapping[str, ArtifactEvaluation]) -> list[Tradeoff]:
    """One trade-off per level for all slices together, then one per slice; none mixes levels.

    artifacts: by label. An artifact is among all slices only if it was measured on each of them.
    """
    by_level: dict[Level, dict[str, LevelEvaluation]] = {}
    for label, artifact in artifacts.items():
        for level in artifact.levels:
            if level.slices:
                by_level.setdefault(level.level, {})[label] = level
    sizes = {label: artifact.size_bytes for label, artifact in artifacts.items()}
    curves: list[Tradeoff] = []
    for name, measured in by_level.items():
        slices = dict.fromkeys(each.slice for level in measured.values() for each in level.slices)
        whole = {
            label: overall_kl(level)
            for label, level in measured.items()
            if len(level.slices) == len(slices)
        }
        if whole:
            curves.append(_tradeoff(name, None, whole, sizes))
        for chosen in slices if len(slices) > 1 else ():
            on_slice = {
                label: each.kl_mean.value
                for label, level in measured.items()
                for each in level.slices
                if each.slice == chosen
            }
            curves.append(_tradeoff(name, chosen, on_slice, sizes))
    return curves


def overall_kl(level: LevelEvaluation) -> float:
    """Mean divergence over the tokens of all slices, nats per token."""
    mean = Overall.of(level).kl_mean
    if not math.isfinite(mean):
        raise UsageError(f"evaluation, level {level.level}: the KL means add up to {mean}.")
    return mean


def pareto_front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return the points that no other is at most as large as in both, and smaller in one.

    >>> sorted(pareto_front([(1, 9), (2, 5), (2, 6), (3, 5), (4, 1)]))
    [(1, 9), (2, 5), (4, 1)]
    """
    front: set[tuple[float, float]] = set()
    lowest = float("inf")
    for x, y in sorted(points):
        if y < lowest:
            front.add((x, y))
            lowest = y
    return front


def _tradeoff(
    level: Level, name: str | None, divergences: Mapping[str, float], sizes: Mapping[str, int]
) -> Tradeoff:
    front = pareto_front((sizes[label], kl) for label, kl in divergences.items())
    points = [
        Point(label, sizes[label], kl, on_front=(sizes[label], kl) in front)
        for label, kl in divergences.items()
    ]
    points.sort(key=lambda point: (point.size_bytes, point.kl_mean))
    return Tradeoff(level, name, points)
