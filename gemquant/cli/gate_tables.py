"""Verdicts and updates of a baseline as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.cli import render
from gemquant.core.resources import human_bytes
from gemquant.core.tables import counted, number, percent, visible
from gemquant.measure.gate.reasons import layer_words
from gemquant.measure.report import tables

if TYPE_CHECKING:
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.verdict import ArtifactVerdict, Verdict

LONGEST = 400


def verdict(verdict: Verdict) -> None:
    """Print every check of every artifact, then the verdict."""
    for artifact in verdict.artifacts:
        _artifact(artifact)
    for note in verdict.notes:
        render.print_tables(f"note: {visible(note, longest=LONGEST)}")
    baseline = verdict.baseline
    reason = f", {visible(baseline.reason)}" if baseline.reason else ""
    render.print_tables(
        f"{verdict.outcome} against {visible(baseline.name)} "
        f"({counted(baseline.updates, 'update')}{reason})"
    )


def _artifact(artifact: ArtifactVerdict) -> None:
    render.print_tables(f"{visible(artifact.name)}: {artifact.outcome}")
    for level, group in tables.by_level(artifact.checks):
        table = tables.checks(group)
        table.title = f"level {level}" if level else "the artifact as a whole"
        render.print_tables(table, *(visible(note, longest=LONGEST) for note in table.notes))
    for finding in artifact.layers:
        place = f"{finding.level}, {visible(finding.slice)}"
        render.print_tables(f"{place}: {layer_words(finding)}.")
    render.print_tables("")


def update(baseline: Baseline, path: Path) -> None:
    """Print what was written."""
    entry = baseline.history[-1]
    numbers = ("size", "bits", "NLL increase", "KL mean", "top-1")
    rows = render.table("artifact", "level", *numbers, numbers=numbers)
    for each in entry.artifacts:
        rows.add_row(
            visible(each.name),
            each.level,
            human_bytes(each.size_bytes),
            f"{each.bits_per_weight:.2f}",
            number(each.nll_increase),
            number(each.kl_mean),
            percent(each.top1),
        )
    render.print_tables(
        rows,
        f"{path}: {counted(len(baseline.artifacts), 'artifact')}, "
        f"{counted(len(baseline.history), 'update')}; {visible(entry.reason)}",
    )
