"""The report as one HTML page that needs nothing else: no network, no server, no other file.

Names come from files that others wrote: the template escapes all of them, data for the script
stands in JSON whose ``<``, ``>``, ``&`` and non-ASCII characters are escaped, and a content
security policy allows the one script and the one style sheet of this package, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from gemquant.core.artifact.evaluation import LEVELS, Interval, LevelEvaluation
from gemquant.core.tables import Table, counted, visible
from gemquant.measure.gate.baseline import HistoryEntry
from gemquant.measure.gate.verdict import SEVERITY, ArtifactVerdict, Outcome
from gemquant.measure.report import tables
from gemquant.measure.report.document import Comparison, Report
from gemquant.measure.report.wording import OUTCOMES

SCRIPTS = ("plot", "tables", "scatter", "bars", "heatmap", "history", "main")
PAGE_ROWS = 20
"""Rows that stand in the page itself; the script turns pages. As in ``tables.js``."""

LONGEST_CELL = 600
FAILED_SHOWN = 20
_MOODS: dict[Outcome | None, tuple[str, str]] = {
    None: ("none", "○"),
    "reported": ("good", "✓"),
    "pass": ("good", "✓"),
    "inconclusive": ("poor", "?"),
    "not-comparable": ("poor", "≠"),
    "regression": ("bad", "✕"),
}


def to_html(report: Report) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"visible": _visible, "rows": _rows, "layers": tables.layers_words}
    environment.filters["counted"] = counted
    template = environment.from_string(_file("page.html.jinja"))
    style = _file("page.css")
    script = "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    verdict = report.verdict
    outcome = None if verdict is None else verdict.outcome
    mood, sign = _MOODS[outcome]
    return template.render(
        report=report,
        title=_title(report),
        subtitle=_subtitle(report),
        outcome="Measured, not gated" if outcome is None else OUTCOMES[outcome].capitalize(),
        verdict_words="No verdict was given: nothing here was held against a baseline."
        if verdict is None
        else tables.verdict_words(verdict),
        mood=mood,
        sign=sign,
        failed=[] if verdict is None else _failed(verdict.artifacts),
        failed_shown=FAILED_SHOWN,
        checks=[] if verdict is None else list(tables.all_checks(verdict, passed=False)),
        passed=[] if verdict is None else list(tables.all_checks(verdict, passed=True)),
        overall_tables=[list(tables.overall(each)) for each in report.comparisons],
        artifact_tables=[tables.artifacts(each) for each in report.comparisons],
        figure_tables=[list(tables.by_level_figures(each)) for each in report.comparisons],
        not_run=[list(tables.not_run(each)) for each in report.comparisons],
        speed=None if report.benchmark is None else tables.benchmark(report.benchmark),
        histories=list(tables.history(report)),
        provenance=tables.provenance(report),
        data=page_data(report),
        levels=LEVELS,
        outcomes=OUTCOMES,
        page_rows=PAGE_ROWS,
        longest_cell=LONGEST_CELL,
        style=style,
        script=script,
        policy=_policy(style=style, script=script),
    )


def _file(name: str) -> str:
    return files("gemquant.measure.report").joinpath("page", name).read_text(encoding="utf-8")


def _policy(*, style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _visible(text: object, longest: int = 160) -> str:
    return visible(str(text), longest=longest)


def _rows(table: Table) -> list[list[tuple[str, float | None]]]:
    return [
        [(visible(cell.text, longest=LONGEST_CELL), cell.key) for cell in row] for row in table.rows
    ]


def _failed(artifacts: tuple[ArtifactVerdict, ...]) -> list[ArtifactVerdict]:
    failed = [each for each in artifacts if SEVERITY[each.outcome]]
    return sorted(failed, key=lambda each: -SEVERITY[each.outcome])


def _title(report: Report) -> str:
    originals = dict.fromkeys(each.original.ref for each in report.comparisons)
    return f"What quantization cost {' and '.join(originals)}"


def _subtitle(report: Report) -> str:
    count = sum(len(each.artifacts) for each in report.comparisons)
    suites = dict.fromkeys(
        f"suite {each.suite.name}, version {each.suite.version}" for each in report.comparisons
    )
    levels = f"level{'s' if len(report.levels) != 1 else ''} {', '.join(report.levels)}"
    return f"{counted(count, 'artifact')} on {' and '.join(suites)}; {levels}."


# ---------------------------------------------------------------- what the script draws from

DIGITS = 7
"""Significant digits; the page shows four."""


def page_data(report: Report) -> Mapping[str, Any]:
    """Return plain data for the script: lists, names and numbers, only what it shows."""
    verdicts = () if report.verdict is None else report.verdict.artifacts
    failed = {each.digest for each in verdicts if SEVERITY[each.outcome]}
    history = () if report.baseline is None else report.baseline.document.history
    return {
        "comparisons": [_comparison(each, failed) for each in report.comparisons],
        "history": _history(history) if history else None,
    }


def _comparison(comparison: Comparison, failed: set[str]) -> Mapping[str, Any]:
    places = {each.label: index for index, each in enumerate(comparison.artifacts)}
    bad = (n for n, each in enumerate(comparison.artifacts) if each.evaluation.digest in failed)
    curves = [
        {
            "level": each.level,
            "slice": each.slice,
            "points": [
                [places[point.label], point.size_bytes, point.kl_mean, point.on_front]
                for point in each.points
            ],
        }
        for each in comparison.tradeoffs
    ]
    artifacts = [
        {
            "label": each.label,
            "container": each.evaluation.container,
            "quantizer": each.evaluation.quantizer,
            "scheme": each.evaluation.scheme,
            "levels": [_level(level) for level in each.evaluation.levels],
        }
        for each in comparison.artifacts
    ]
    return {"first": next(bad, 0), "artifacts": _plain(artifacts), "tradeoffs": _plain(curves)}


def _level(level: LevelEvaluation) -> Mapping[str, Any]:
    return {
        "level": level.level,
        "not_run": level.not_run,
        "accumulated": [each.model_dump() for each in level.layers_accumulated],
        "own": [each.model_dump() for each in level.layers_own],
        "slices": [
            {
                "slice": each.slice,
                "tokens": each.token_count,
                "kl_mean": each.kl_mean,
                "kl_p999": each.kl_p999,
                "nll_increase": each.nll_increase,
                "changed": [1 - end for end in (each.top1.value, *reversed(each.top1.bounds))],
            }
            for each in level.slices
        ],
    }


def _history(entries: Sequence[HistoryEntry]) -> Mapping[str, Any]:
    levels: dict[str, dict[str, list[Sequence[float]]]] = {}
    for update, entry in enumerate(entries):
        for each in entry.artifacts:
            points = levels.setdefault(each.level, {}).setdefault(visible(each.name), [])
            points.append([update, each.kl_mean, each.nll_increase, each.top1, each.size_bytes])
    series = {
        level: [{"name": name, "points": points} for name, points in artifacts.items()]
        for level, artifacts in levels.items()
    }
    words = [[entry.commit or "", entry.reason] for entry in entries]
    return {"entries": _plain(words), "levels": _plain(series)}


def _plain(value: Any) -> Any:
    """Data with short numbers, intervals as lists, and text that can be seen."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case str():
            return visible(value, longest=400)
        case Interval():
            return _plain([value.value, *value.bounds])
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            return value
