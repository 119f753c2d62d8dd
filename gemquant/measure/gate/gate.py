"""Artifacts against a baseline: every figure compared, every check decided, the verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gemquant import __version__
from gemquant.core.artifact.evaluation import ArtifactEvaluation, EvaluationDocument
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.artifact_checks import (
    bench_checks,
    bench_figures,
    bytes_check,
    size_check,
)
from gemquant.measure.gate.baseline import (
    Baseline,
    BaselineEntry,
    artifact_mismatches,
    document_mismatches,
    level_mismatches,
    missing_artifact,
)
from gemquant.measure.gate.budget import Budgets
from gemquant.measure.gate.reasons import located, reasons
from gemquant.measure.gate.text_checks import ALPHA, FAMILY_ALPHA, TextCheck, text_checks
from gemquant.measure.gate.verdict import (
    ArtifactVerdict,
    BaselineReference,
    Check,
    Verdict,
    exit_code,
    worst,
)


@dataclass
class Compared:
    """One artifact and its entry. mismatches: why they cannot be compared; then alone."""

    artifact: ArtifactEvaluation
    entry: BaselineEntry | None
    mismatches: list[str] = field(default_factory=list)
    text: list[TextCheck] = field(default_factory=list)
    artifact_wide: list[Check] = field(default_factory=list)


def judge(
    documents: Sequence[EvaluationDocument],
    baseline: Baseline,
    budgets: Budgets,
    *,
    file: str,
    benchmark: Benchmark | None = None,
) -> Verdict:
    """Hold every artifact against the baseline. file: the baseline's path, for messages."""
    compared = [
        _compared(artifact, document, baseline, budgets, file, benchmark)
        for document in documents
        for artifact in document.artifacts
    ]
    gated = sum(each.gated for one in compared for each in one.text)
    share = FAMILY_ALPHA / max(gated, 1)
    artifacts = [_decided(each, share) for each in compared]
    outcome = worst(each.outcome for each in artifacts)
    return Verdict(
        gemquant=__version__,
        outcome=outcome,
        exit_code=exit_code(outcome, inconclusive=budgets.inconclusive),
        family_error=FAMILY_ALPHA,
        error=ALPHA,
        baseline=_reference(baseline, file),
        artifacts=tuple(artifacts),
        notes=tuple(_notes(documents, baseline, {each.artifact.name for each in compared})),
    )


def _compared(
    artifact: ArtifactEvaluation,
    document: EvaluationDocument,
    baseline: Baseline,
    budgets: Budgets,
    file: str,
    benchmark: Benchmark | None,
) -> Compared:
    entry = baseline.entry(artifact.name)
    compared = Compared(artifact, entry, list(document_mismatches(document, baseline)))
    if entry is None:
        compared.mismatches.append(missing_artifact(artifact.name, baseline, file))
        return compared
    compared.mismatches += artifact_mismatches(artifact, document.settings, entry)
    levels = [
        (before, artifact.level(before.level))
        for before in entry.evaluation.levels
        if before.not_run is None and (budgets.levels is None or before.level in budgets.levels)
    ]
    if not levels:
        compared.mismatches.append("the baseline holds no level of it that is to be compared")
    for before, now in levels:
        mismatches = list(level_mismatches(before, now))
        compared.mismatches += mismatches
        if now is not None and not mismatches:
            compared.text += text_checks(artifact.name, before, now, budgets)
    if compared.mismatches:
        compared.text = []
        return compared
    compared.artifact_wide = [
        size_check(artifact, entry, budgets),
        bytes_check(artifact, document.machine, entry, budgets),
    ]
    if benchmark is not None:
        figures = bench_figures(benchmark, artifact.name)
        compared.artifact_wide += bench_checks(artifact.name, figures, entry, budgets)
    return compared


def _decided(compared: Compared, share: float) -> ArtifactVerdict:
    """Judge one artifact. share: of the family's risk, for each check."""
    artifact, entry = compared.artifact, compared.entry
    digest = entry.evaluation.digest if entry is not None else None
    if compared.mismatches or entry is None:
        return ArtifactVerdict(
            name=artifact.name,
            digest=artifact.digest,
            baseline_digest=digest,
            outcome="not-comparable",
            reasons=tuple(compared.mismatches),
        )
    checks = [*(each.judge(share) for each in compared.text), *compared.artifact_wide]
    layers = located(checks, entry.evaluation, artifact)
    return ArtifactVerdict(
        name=artifact.name,
        digest=artifact.digest,
        baseline_digest=digest,
        outcome=worst(each.outcome for each in checks),
        reasons=tuple(reasons(checks, layers)),
        checks=tuple(checks),
        layers=tuple(layers),
    )


def _reference(baseline: Baseline, file: str) -> BaselineReference:
    last = baseline.history[-1] if baseline.history else None
    return BaselineReference(
        name=file.replace("\\", "/").rpartition("/")[2],
        sha256=hashlib.sha256(baseline.to_json()).hexdigest(),
        suite=baseline.suite,
        original=baseline.original,
        updates=len(baseline.history),
        reason=last.reason if last else None,
        commit=last.commit if last else None,
    )


def _notes(
    documents: Iterable[EvaluationDocument], baseline: Baseline, names: set[str]
) -> list[str]:
    notes = [
        f"{each.name!r} is in the baseline and was not measured"
        for each in baseline.artifacts
        if each.name not in names
    ]
    for document in documents:
        for artifact in document.artifacts:
            entry = baseline.entry(artifact.name)
            if entry is None:
                continue
            if entry.machine != document.machine:
                notes.append(f"{artifact.name!r} was measured on another machine than the baseline")
            for level in artifact.levels:
                before = entry.evaluation.level(level.level)
                if before is None:
                    notes.append(
                        f"{artifact.name!r}: level {level.level} is not in the baseline, not gated"
                    )
                elif before.runtime != level.runtime:
                    notes.append(
                        f"{artifact.name!r}, level {level.level}: "
                        f"{before.runtime} → {level.runtime}"
                    )
    return notes
