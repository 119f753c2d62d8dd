"""Invented verdicts and histories beside invented evaluations, for reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.measure.gate.baseline import Baseline, BaselineEntry, Headline, HistoryEntry
from gemquant.measure.gate.verdict import (
    ArtifactVerdict,
    BaselineReference,
    Check,
    LayerFinding,
    Outcome,
    Verdict,
    exit_code,
    worst,
)
from gemquant.measure.report.document import Report, Source, SourceKind, assemble
from tests.helpers import tiny_evaluation

T = TypeVar("T")


def given(kind: SourceKind, document: T, name: str | None = None) -> Source[T]:
    return Source(kind, name or f"{kind}.json", "7" * 64, document)


def check(outcome: Outcome = "pass", *, slice: str | None = "english") -> Check:
    """Mean divergence at level reference; the baseline's is 0.1 and the budget 0.01."""
    increase = {"pass": 0.0, "regression": 0.05, "inconclusive": 0.009}.get(outcome, 0.0)
    return Check(
        metric="kl_mean",
        level="reference",
        slice=slice,
        baseline=0.1,
        value=0.1 + increase,
        increase=increase,
        low=increase - 0.002,
        high=increase + 0.002,
        windows=8,
        budget=0.01,
        outcome=outcome,
    )


def verdict(
    of: EvaluationDocument, *checks: Check, reasons: Sequence[str] = ("english got worse",)
) -> Verdict:
    """On every artifact of a document the same checks."""
    outcome = worst(each.outcome for each in checks)
    findings = (
        LayerFinding(
            level="reference",
            slice="english",
            layer=2,
            baseline=0.01,
            value=0.05,
            ratio_before=1.0,
            ratio=25.0,
        ),
    )
    return Verdict(
        gemquant="0.1.0",
        outcome=outcome,
        exit_code=exit_code(outcome, inconclusive="fail"),
        family_error=0.01,
        error=0.05,
        baseline=BaselineReference(
            name="gemma.json",
            sha256="8" * 64,
            suite=of.suite,
            original=of.original,
            updates=1,
            reason="the first",
            commit="0123abc",
        ),
        artifacts=tuple(
            ArtifactVerdict(
                name=each.name,
                digest=each.digest,
                baseline_digest="sha256:" + "9" * 64,
                outcome=outcome,
                reasons=() if outcome == "pass" else tuple(reasons),
                checks=checks,
                layers=findings if outcome == "regression" else (),
            )
            for each in of.artifacts
        ),
    )


def baseline(of: EvaluationDocument, *, updates: int = 3) -> Baseline:
    """A baseline whose divergence falls a little with every update."""
    return Baseline(
        suite=of.suite,
        original=of.original,
        artifacts=tuple(
            BaselineEntry(evaluation=each, settings=of.settings, machine=of.machine)
            for each in of.artifacts
        ),
        history=tuple(
            HistoryEntry(
                reason=f"update {number}",
                commit=f"{number:07x}",
                gemquant="0.1.0",
                suite_version=1,
                artifacts=tuple(
                    Headline(
                        name=each.name,
                        level="reference",
                        digest=each.digest,
                        size_bytes=each.size_bytes,
                        bits_per_weight=each.bits_per_weight,
                        nll_increase=0.05 + 0.01 / (1 + number),
                        kl_mean=0.1 + 0.02 / (1 + number),
                        top1=0.9,
                    )
                    for each in of.artifacts
                ),
            )
            for number in range(updates)
        ),
    )


def report(*checks: Check, of: EvaluationDocument | None = None) -> Report:
    """One evaluation, and a verdict on it where checks are given."""
    document = of or tiny_evaluation.document()
    return assemble(
        [given("evaluation", document)],
        verdict=given("verdict", verdict(document, *checks)) if checks else None,
    )
