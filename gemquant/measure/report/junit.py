"""The gate's verdict as JUnit XML, which CI systems show as tests.

One suite per artifact, one case per check. The elements and their order are those of Jenkins' xunit
plugin (``junit-10.xsd``), which GitLab, GitHub's reporters and others read too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from gemquant.core.artifact.evaluation import ArtifactEvaluation
from gemquant.core.tables import visible
from gemquant.errors import UsageError
from gemquant.measure.gate.reasons import layer_words
from gemquant.measure.gate.verdict import SEVERITY, ArtifactVerdict, Check, Verdict
from gemquant.measure.report import wording
from gemquant.measure.report.document import Report
from gemquant.measure.report.wording import METRICS, OUTCOMES

_TALLIED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
_LONGEST = 4_000


def to_junit(report: Report) -> bytes:
    """Return the XML. UsageError without a verdict: then nothing was decided.

    A regression is a failure; what could not be compared or decided is an error; what was not
    measured, or is not gated, is skipped. Some case fails or errs exactly if the gate exits with
    anything but 0.
    """
    verdict = report.verdict
    if verdict is None:
        raise UsageError(
            "--junit: no verdict, so there is nothing that could pass or fail.",
            hint="Give one: gemquant gate … --output verdict.json; then --verdict verdict.json",
        )
    measured = {
        (each.evaluation.name, each.evaluation.digest): each.evaluation
        for comparison in report.comparisons
        for each in comparison.artifacts
    }
    root = ET.Element("testsuites", name="gemquant gate")
    for artifact in verdict.artifacts:
        suite = ET.SubElement(root, "testsuite", name=visible(artifact.name))
        _properties(suite, artifact, verdict)
        _cases(suite, artifact, verdict, measured[artifact.name, artifact.digest])
        _tally(suite, ("tests", *_TALLIED))
    _tally(root, ("tests", "failures", "errors"))
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _properties(suite: ET.Element, artifact: ArtifactVerdict, verdict: Verdict) -> None:
    facts: Mapping[str, str] = {
        "digest": artifact.digest,
        "baseline": verdict.baseline.name,
        "baseline_sha256": verdict.baseline.sha256,
        "gemquant": verdict.gemquant,
    }
    holder = ET.SubElement(suite, "properties")
    for name, value in facts.items():
        ET.SubElement(holder, "property", name=name, value=visible(value))


def _cases(
    suite: ET.Element, artifact: ArtifactVerdict, verdict: Verdict, measured: ArtifactEvaluation
) -> None:
    seen: Counter[str] = Counter()
    for check in artifact.checks:
        name = _name(check)
        seen[name] += 1
        # CI systems take cases of one name for one case.
        unique = name if seen[name] == 1 else f"{name} ({seen[name]})"
        _check(_case(suite, artifact.name, unique), check, artifact, verdict)
    for level in measured.levels:
        if level.not_run is not None:
            case = _case(suite, artifact.name, f"{level.level}: all slices: all metrics")
            _add_outcome(case, "skipped", "not-run", f"not run: {level.not_run}", "")
    unexplained = not any(
        SEVERITY[each.outcome] >= SEVERITY[artifact.outcome] for each in artifact.checks
    )
    if unexplained:
        case = _case(suite, artifact.name, "the artifact as a whole")
        kind = _kind(artifact.outcome, verdict)
        if kind is not None:
            words = "; ".join(artifact.reasons) or OUTCOMES[artifact.outcome]
            _add_outcome(case, kind, artifact.outcome, words, "")


def _name(check: Check) -> str:
    level = check.level or "artifact"
    return f"{level}: {visible(wording.place(check))}: {METRICS[check.metric]}"


def _case(suite: ET.Element, artifact: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=visible(artifact), name=name)


def _kind(outcome: str, verdict: Verdict) -> str | None:
    if outcome == "inconclusive" and verdict.exit_code == 0:
        return "skipped"
    return {
        "regression": "failure",
        "inconclusive": "error",
        "not-comparable": "error",
        "reported": "skipped",
    }.get(outcome)


def _check(case: ET.Element, check: Check, artifact: ArtifactVerdict, verdict: Verdict) -> None:
    kind = _kind(check.outcome, verdict)
    if kind is None:
        return
    worse = wording.increase(check, check.increase)
    message = f"{OUTCOMES[check.outcome]}: worse by {worse}, budget "
    message += wording.increase(check, check.budget)
    lines = [
        f"baseline {wording.measured(check, check.baseline)}",
        f"now {wording.measured(check, check.value)}",
        f"worse by {worse}, interval {wording.increase_interval(check)}",
    ]
    if check.windows_needed is not None:
        lines.append(f"{check.windows} windows; about {check.windows_needed} would decide")
    if check.note:
        lines.append(check.note)
    lines += [
        f"{each.slice}: {layer_words(each)}"
        for each in artifact.layers
        if each.level == check.level and check.slice in {None, each.slice}
    ]
    _add_outcome(case, kind, check.outcome, message, "\n".join(visible(line) for line in lines))


def _add_outcome(case: ET.Element, kind: str, outcome: str, message: str, text: str) -> None:
    element = ET.SubElement(case, kind, type=outcome, message=visible(message, longest=_LONGEST))
    element.text = text or None


def _tally(element: ET.Element, names: tuple[str, ...]) -> None:
    for name in names:
        tag = _TALLIED.get(name, "testcase")
        element.set(name, str(sum(1 for _ in element.iter(tag))))
