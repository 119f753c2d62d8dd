"""What the page's script draws from: the report's figures, short, and only what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemquant.core.artifact.evaluation import (
    Interval,
    LayerErrors,
    LevelEvaluation,
    SliceEvaluation,
)
from gemquant.core.tables import visible
from gemquant.measure.gate.verdict import SEVERITY
from gemquant.measure.report.document import BaselineHistory, Comparison, MeasuredArtifact, Report

DIGITS = 7
"""Significant digits; the page shows four, the JSON report all."""


def page_data(report: Report) -> Mapping[str, Any]:
    """Return plain data: lists, names and numbers."""
    return {
        "comparisons": [_comparison(each, _failed(report)) for each in report.comparisons],
        "history": _history(report.history)
        if report.history is not None and report.history.entries
        else None,
    }


def _failed(report: Report) -> set[str]:
    """Digests of the artifacts that did not pass."""
    verdicts = () if report.verdict is None else report.verdict.artifacts
    return {each.digest for each in verdicts if SEVERITY[each.outcome]}


def _comparison(comparison: Comparison, failed: set[str]) -> Mapping[str, Any]:
    places = {each.label: index for index, each in enumerate(comparison.artifacts)}
    bad = (n for n, each in enumerate(comparison.artifacts) if each.evaluation.digest in failed)
    return {
        "first": next(bad, 0),
        "artifacts": [_artifact(each) for each in comparison.artifacts],
        "tradeoffs": [
            {
                "level": each.level,
                "slice": None if each.slice is None else visible(each.slice),
                "points": [
                    [places[point.label], point.size_bytes, _short(point.kl_mean), point.on_front]
                    for point in each.points
                ],
            }
            for each in comparison.tradeoffs
        ],
    }


def _artifact(artifact: MeasuredArtifact) -> Mapping[str, Any]:
    evaluation = artifact.evaluation
    return {
        "label": visible(artifact.label),
        "container": visible(evaluation.container),
        "quantizer": visible(evaluation.quantizer),
        "scheme": visible(evaluation.scheme),
        "levels": [_level(each) for each in evaluation.levels],
    }


def _level(level: LevelEvaluation) -> Mapping[str, Any]:
    return {
        "level": level.level,
        "not_run": None if level.not_run is None else visible(level.not_run, longest=400),
        "slices": [_slice(each) for each in level.slices],
        "accumulated": [_layers(each) for each in level.layers_accumulated],
        "own": [_layers(each) for each in level.layers_own],
    }


def _slice(measured: SliceEvaluation) -> Mapping[str, Any]:
    same = measured.top1
    return {
        "slice": visible(measured.slice),
        "tokens": measured.token_count,
        "kl_mean": _interval(measured.kl_mean),
        "kl_p999": _interval(measured.kl_p999),
        "nll_increase": _interval(measured.nll_increase),
        "changed": [_short(1 - same.value), _short(1 - same.high), _short(1 - same.low)],
    }


def _layers(errors: LayerErrors) -> Mapping[str, Any]:
    return {
        "slice": visible(errors.slice),
        "relative": [_short(each) for each in errors.relative],
        "cosine": [_short(each) for each in errors.cosine],
    }


def _interval(interval: Interval | None) -> Sequence[float]:
    return (
        []
        if interval is None
        else [_short(each) for each in (interval.value, interval.low, interval.high)]
    )


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _history(history: BaselineHistory) -> Mapping[str, Any]:
    levels: dict[str, dict[str, list[Sequence[float]]]] = {}
    for update, entry in enumerate(history.entries):
        for each in entry.artifacts:
            points = levels.setdefault(each.level, {}).setdefault(visible(each.name), [])
            figures = (each.kl_mean, each.nll_increase, each.top1)
            points.append([update, *map(_short, figures), each.size_bytes])
    return {
        "entries": [
            [visible(entry.commit or ""), visible(entry.reason)] for entry in history.entries
        ],
        "levels": {
            level: [{"name": name, "points": points} for name, points in series.items()]
            for level, series in levels.items()
        },
    }
