"""The report as Markdown, for a pull request and for ``$GITHUB_STEP_SUMMARY``.

The verdict comes first, then what failed, then tables, one per level. GitHub shows neither a
summary above 1 MiB nor a comment above 65,536 characters: tables end early where a limit asks for
it, and say how many rows they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemquant.core.artifact.evaluation import LEVELS
from gemquant.core.artifact.losses import overall_legend
from gemquant.core.tables import Table, escaped, markdown, number
from gemquant.measure.gate.verdict import SEVERITY, ArtifactVerdict, Check, Outcome, Verdict
from gemquant.measure.report import tables
from gemquant.measure.report.document import Comparison, Report
from gemquant.measure.report.wording import OUTCOMES

SUMMARY_LIMIT_BYTES = 1_048_576
"""Largest ``$GITHUB_STEP_SUMMARY`` of one step that GitHub shows."""

SMALLEST_LIMIT_BYTES = 4_096
_LONGEST_CELL = 600
_TAIL_BYTES = 600
"""Reserved for the note on what was left out."""

_SIGNS = {
    "pass": "✅",
    "reported": "✅",
    "inconclusive": "⚠️",
    "not-comparable": "⚠️",
    "regression": "❌",
}


def to_markdown(report: Report, *, limit_bytes: int = SUMMARY_LIMIT_BYTES) -> str:
    """Return the report's Markdown, at most ``limit_bytes`` long in UTF-8.

    Names are escaped; they neither become markup nor mention anybody.
    """
    page = _Page(limit_bytes)
    _verdict(page, report.verdict)
    for comparison in report.comparisons:
        _overall(page, comparison)
    for comparison in report.comparisons:
        _comparison(page, comparison)
    if report.benchmark is not None:
        page.text("### Speed and memory")
        page.table(tables.benchmark(report.benchmark))
    if report.baseline is not None:
        page.text(f"### History of {escaped(report.baseline.name)}")
        for level, table in tables.history(report):
            page.text(f"Level {level}:")
            page.table(table)
    page.folded("Provenance", tables.provenance(report))
    return page.finish()


class _Page:
    """Parts of a text that stay within a limit together; what does not fit is counted."""

    def __init__(self, limit_bytes: int) -> None:
        self._parts: list[str] = []
        self._left = limit_bytes - _TAIL_BYTES
        self._missing_rows = 0
        self._missing_texts = 0

    def text(self, text: str) -> None:
        """Add a paragraph, or leave it out whole."""
        if not self._take(f"{text}\n\n"):
            self._missing_texts += 1

    def table(self, table: Table) -> None:
        """Add a table, or its first rows."""
        if not table.rows:
            return
        for index, line in enumerate(markdown(table)):
            if not self._take(f"{line}\n"):
                self._missing_rows += len(table.rows) - max(0, index - 1)
                break
        self._take("\n")
        for note in table.notes:
            self.text(escaped(note, longest=400))

    def folded(self, title: str, table: Table) -> None:
        """Add a table that a reader opens."""
        end = "</details>\n\n"
        if self._take(f"<details><summary>{title}</summary>\n\n{end}"):
            self._parts[-1] = self._parts[-1].removesuffix(end)
            self.table(table)
            self._parts.append(end)

    def finish(self) -> str:
        """Return the text, with a word on what is not in it."""
        missing = []
        if self._missing_rows:
            missing.append(f"{self._missing_rows:,} rows of tables")
        if self._missing_texts:
            missing.append(f"{self._missing_texts:,} paragraphs")
        if missing:
            self._parts.append(
                f"**Left out to stay within the size allowed: {' and '.join(missing)}.** "
                "The HTML report holds everything.\n"
            )
        return "".join(self._parts).rstrip() + "\n"

    def _take(self, text: str) -> bool:
        size = len(text.encode())
        if size > self._left:
            return False
        self._left -= size
        self._parts.append(text)
        return True


def _verdict(page: _Page, verdict: Verdict | None) -> None:
    if verdict is None:
        page.text("## gemquant: measured, not gated")
        page.text("No verdict was given: nothing here was held against a baseline.")
        return
    page.text(f"## {_SIGNS[verdict.outcome]} gemquant: {OUTCOMES[verdict.outcome]}")
    page.text(escaped(tables.verdict_words(verdict), longest=600))
    for artifact in sorted(verdict.artifacts, key=lambda each: -SEVERITY[each.outcome]):
        if SEVERITY[artifact.outcome]:
            _failed(page, artifact)
    for note in verdict.notes:
        page.text(f"- {escaped(note, longest=400)}")


def _failed(page: _Page, artifact: ArtifactVerdict) -> None:
    sign, words = _SIGNS[artifact.outcome], OUTCOMES[artifact.outcome]
    page.text(f"### {sign} {escaped(artifact.name)}: {words}")
    if artifact.reasons:
        page.text(
            "\n".join(f"- {escaped(each, longest=_LONGEST_CELL)}" for each in artifact.reasons)
        )
    for level, checks in tables.by_level(_not_passed(artifact.checks)):
        page.text(f"Level {level}:" if level else "The artifact as a whole:")
        page.table(tables.checks(checks))
    if artifact.layers:
        page.text(f"- {escaped(tables.layers_words(artifact.layers), longest=_LONGEST_CELL)}")


def _not_passed(checks: Sequence[Check]) -> list[Check]:
    severe: dict[Outcome, int] = dict(SEVERITY)
    return sorted(
        (each for each in checks if severe[each.outcome]), key=lambda each: -severe[each.outcome]
    )


def _overall(page: _Page, comparison: Comparison) -> None:
    page.text(f"### {_heading(comparison)}")
    for level, table in tables.overall(comparison):
        page.text(f"**Level {level}.** {LEVELS[level]}")
        page.table(table)
    evaluations = [each.evaluation for each in comparison.artifacts]
    page.text(overall_legend(level for each in evaluations for level in each.levels))
    _fronts(page, comparison)


def _heading(comparison: Comparison) -> str:
    suite = comparison.suite
    return (
        f"{escaped(comparison.original.ref)} on suite {escaped(suite.name)}, version "
        f"{suite.version}"
    )


def _comparison(page: _Page, comparison: Comparison) -> None:
    page.text(f"### Each slice: {_heading(comparison)}")
    for level, table in tables.by_level_figures(comparison):
        page.text(f"**Level {level}.**")
        page.table(table)
    for words in tables.not_run(comparison):
        page.text(f"- {escaped(words, longest=400)}")


def _fronts(page: _Page, comparison: Comparison) -> None:
    fronts = [each for each in comparison.tradeoffs if each.slice is None]
    for front in fronts:
        if len(front.points) > 1:
            names = ", ".join(
                f"{escaped(each.label)} ({number(each.kl_mean)})"
                for each in front.points
                if each.on_front
            )
            page.text(
                f"Level {front.level}: no artifact here is both smaller and closer than "
                f"{names} (KL mean over all slices, nats/token)."
            )
