"""The report as one HTML page that needs nothing else: no network, no server, no other file.

Names come from files that others wrote: the template escapes all of them, data for the script
stands in JSON whose ``<``, ``>``, ``&`` and non-ASCII characters are escaped, and a content
security policy allows the one script and the one style sheet of this package, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from gemquant.core.artifact.evaluation import LEVELS
from gemquant.core.tables import Table, counted, visible
from gemquant.measure.gate.verdict import SEVERITY, ArtifactVerdict, Outcome
from gemquant.measure.report import tables
from gemquant.measure.report.document import Report
from gemquant.measure.report.page_data import page_data
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
        checks=[] if verdict is None else list(tables.all_checks(verdict)),
        artifact_tables=[tables.artifacts(each) for each in report.comparisons],
        figure_tables=[list(tables.by_level_figures(each)) for each in report.comparisons],
        not_run=[list(tables.not_run(each)) for each in report.comparisons],
        speed=None if report.benchmark is None else tables.benchmark(report.benchmark),
        histories=[] if report.history is None else list(tables.history(report.history)),
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
