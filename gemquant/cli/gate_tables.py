"""Verdicts and updates of a baseline as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.cli import render
from gemquant.core.resources import human_bytes
from gemquant.measure.gate.reasons import amount, layer_words

if TYPE_CHECKING:
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.verdict import ArtifactVerdict, Check, Metric, Verdict


METRICS: Mapping[Metric, str] = {
    "nll_increase": "NLL",
    "kl_mean": "KL",
    "kl_mean_ceiling": "KL itself",
    "top1": "top-1",
    "size": "size",
    "bytes_changed": "bytes",
    "peak_memory": "memory",
    "decode_speed": "speed",
}


def verdict(made: Verdict) -> None:
    """Print every check of every artifact, then the verdict."""
    for artifact in made.artifacts:
        _artifact(artifact)
    for note in made.notes:
        render.print_tables(f"note: {note}")
    last = f", {shown(made.baseline.reason)}" if made.baseline.reason else ""
    render.print_tables(
        f"{made.outcome} against {shown(made.baseline.name)} "
        f"({render.counted(made.baseline.updates, 'update')}{last})"
    )


def shown(text: str) -> str:
    """Text of a file for a terminal: no control characters."""
    return text if text.isprintable() else repr(text)


def _artifact(artifact: ArtifactVerdict) -> None:
    render.print_tables(f"{shown(artifact.name)}: {artifact.outcome}")
    numbers = ("baseline", "now", "worse by", "at least", "at most", "budget")
    checks = render.table("level", "slice", "metric", *numbers, "outcome", numbers=numbers)
    for check in artifact.checks:
        checks.add_row(
            check.level or "",
            _slice(check),
            METRICS[check.metric],
            *(_cell(check, value) for value in (check.baseline, check.value)),
            *(_loss(check, value) for value in _losses(check)),
            check.outcome,
        )
    if artifact.checks:
        render.print_tables(checks)
    for note in dict.fromkeys(c.note for c in artifact.checks if c.note and c.level is None):
        render.print_tables(shown(note))
    for finding in artifact.layers:
        render.print_tables(f"{finding.level}, {shown(finding.slice)}: {layer_words(finding)}.")
    render.print_tables("")


def _losses(check: Check) -> Sequence[float | None]:
    return check.increase, check.low, check.high, check.budget


def _loss(check: Check, value: float | None) -> str:
    if value is None or check.metric == "bytes_changed":
        return ""
    return amount(check.metric, value)


def _slice(check: Check) -> str:
    if check.where is not None:
        return shown(check.where)
    if check.slice is not None:
        return shown(check.slice)
    return "all slices" if check.level is not None else ""


def _cell(check: Check, value: float | None) -> str:
    if value is None:
        return ""
    if check.metric in {"size", "peak_memory"}:
        return human_bytes(round(value))
    if check.metric == "decode_speed":
        return f"{value:.1f}/s"
    return amount(check.metric, value)


def update(baseline: Baseline, path: Path) -> None:
    """Print what was written."""
    entry = baseline.history[-1]
    numbers = ("size", "bits", "NLL +", "KL mean", "top-1 same")
    rows = render.table("artifact", "level", *numbers, numbers=numbers)
    for each in entry.artifacts:
        rows.add_row(
            shown(each.name),
            each.level,
            human_bytes(each.size_bytes),
            f"{each.bits_per_weight:.2f}",
            f"{each.nll_increase:z.4f}",
            f"{each.kl_mean:z.4f}",
            f"{each.top1:.2%}",
        )
    render.print_tables(
        rows,
        f"{path}: {render.counted(len(baseline.artifacts), 'artifact')}, "
        f"{render.counted(len(baseline.history), 'update')}; {shown(entry.reason)}",
    )
