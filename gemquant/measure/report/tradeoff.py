"""Size against divergence, and which artifacts nothing beats in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemquant.core.artifact.evaluation import Level, LevelEvaluation
from gemquant.measure.report.document import MeasuredArtifact, Point, Tradeoff


def tradeoffs(artifacts: Sequence[MeasuredArtifact]) -> tuple[Tradeoff, ...]:
    """One trade-off per level for all slices together, then one per slice; none mixes levels.

    An artifact stands among all slices only if it was measured on every one of them.
    """
    measured = [
        (artifact, level)
        for artifact in artifacts
        for level in artifact.evaluation.levels
        if level.slices
    ]
    found: list[Tradeoff] = []
    for name in dict.fromkeys(level.level for _, level in measured):
        here = [(artifact, level) for artifact, level in measured if level.level == name]
        slices = list(dict.fromkeys(each.slice for _, level in here for each in level.slices))
        whole = [pair for pair in here if len(pair[1].slices) == len(slices)]
        if whole:
            figures = [(artifact, overall_kl(level)) for artifact, level in whole]
            found.append(_tradeoff(name, None, figures))
        found += [
            _tradeoff(name, each, _on_slice(here, each)) for each in slices if len(slices) > 1
        ]
    return tuple(found)


def overall_kl(level: LevelEvaluation) -> float:
    """Mean divergence over the tokens of all slices, nats per token."""
    windows = [each.windows for each in level.slices]
    total = sum(
        tokens * kl
        for columns in windows
        for tokens, kl in zip(columns.tokens, columns.kl_mean, strict=True)
    )
    return total / sum(tokens for columns in windows for tokens in columns.tokens)


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


def _on_slice(
    here: Iterable[tuple[MeasuredArtifact, LevelEvaluation]], name: str
) -> list[tuple[MeasuredArtifact, float]]:
    return [
        (artifact, measured.kl_mean.value)
        for artifact, level in here
        for measured in level.slices
        if measured.slice == name
    ]


def _tradeoff(
    level: Level, slice_name: str | None, measured: Sequence[tuple[MeasuredArtifact, float]]
) -> Tradeoff:
    front = pareto_front((each.evaluation.size_bytes, kl) for each, kl in measured)
    points = [
        Point(
            label=each.label,
            size_bytes=each.evaluation.size_bytes,
            kl_mean=kl,
            on_front=(each.evaluation.size_bytes, kl) in front,
        )
        for each, kl in measured
    ]
    points.sort(key=lambda point: (point.size_bytes, point.kl_mean))
    return Tradeoff(level=level, slice=slice_name, points=tuple(points))
