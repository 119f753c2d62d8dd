"""Verdicts and updates of a baseline as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.cli import render
from gemquant.core.artifact.losses import OVERALL, comparisons
from gemquant.core.tables import counted, visible
from gemquant.measure.gate.reasons import layer_words
from gemquant.measure.report import tables, wording
from gemquant.measure.report.wording import METRICS

if TYPE_CHECKING:
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.verdict import ArtifactVerdict, Check, Verdict

LONGEST = 400


def verdict(verdict: Verdict) -> None:
    """Print a line for what passed, the checks of what did not, with ``-v`` all; the verdict."""
    for artifact in verdict.artifacts:
        if artifact.outcome == "pass" and not render.verbose():
            render.print_tables(_passed(artifact))
        else:
            _artifact(artifact)
    for note in verdict.notes:
        render.print_tables(f"note: {visible(note, longest=LONGEST)}")
    baseline = verdict.baseline
    reason = f", {visible(baseline.reason)}" if baseline.reason else ""
    render.print_tables(
        f"{verdict.outcome} against {visible(baseline.name)} "
        f"({counted(baseline.updates, 'update')}{reason})"
    )


def _passed(artifact: ArtifactVerdict) -> str:
    """How many checks passed, and which is closest to its budget."""
    line = f"{visible(artifact.name)}: pass, {counted(len(artifact.checks), 'check')}"
    judged = [(used, check) for check in artifact.checks if (used := _used(check)) is not None]
    if not judged:
        return line
    used, check = max(judged, key=lambda pair: pair[0])
    if used <= 0:
        return f"{line}; nothing is worse"
    metric = METRICS[check.metric].partition(",")[0]
    bounds = "" if check.high is None else f" (at most {wording.increase(check, check.high)})"
    increase, budget = wording.increase(check, check.increase), wording.budget(check)
    place = visible(wording.place(check))
    return f"{line}; closest to its budget: {place}, {metric} {increase}{bounds} of {budget}"


def _used(check: Check) -> float | None:
    """The share of its budget that a check's increase takes, by its upper bound if it has one."""
    worst = check.increase if check.high is None else check.high
    return worst / check.budget if worst is not None and check.budget else None


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
    written = {each.name for each in entry.artifacts}
    measured = [each.evaluation for each in baseline.artifacts if each.name in written]
    for level, table in comparisons(measured):
        table.title = f"Level {level}"
        render.print_tables(table)
    render.print_tables(
        OVERALL,
        f"{path}: {counted(len(baseline.artifacts), 'artifact')}, "
        f"{counted(len(baseline.history), 'update')}; {visible(entry.reason)}",
    )
