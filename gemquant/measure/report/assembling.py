"""From the files given to one report; what may not be compared is kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gemquant import __version__
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.errors import GemquantError, NotComparableError, UsageError, refuse
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.baseline import Baseline
from gemquant.measure.gate.verdict import Verdict
from gemquant.measure.report.document import (
    BaselineHistory,
    Comparison,
    MeasuredArtifact,
    Report,
    SourceFile,
)
from gemquant.measure.report.tradeoff import tradeoffs

T = TypeVar("T")
DIGEST_SHOWN = 8


@dataclass(frozen=True)
class Given(Generic[T]):
    """A document with the file that it was read from."""

    source: SourceFile
    document: T


def assemble(
    evaluations: Sequence[Given[EvaluationDocument]],
    *,
    verdict: Given[Verdict] | None = None,
    benchmark: Given[Benchmark] | None = None,
    baseline: Given[Baseline] | None = None,
) -> Report:
    """Put documents side by side.

    Evaluations are in one comparison if original, tokens and settings are the same. Errors, all at
    once: nothing measured, an artifact given twice, a verdict on artifacts that are not here, a
    baseline of another original.
    """
    problems = _repeated(evaluations)
    if not any(each.document.artifacts for each in evaluations):
        problems.append(
            UsageError(
                "No artifact in any evaluation.",
                hint="Measure some: gemquant eval ARTIFACT… --output eval.json",
            )
        )
    if verdict is not None:
        problems += _verdict_problems(verdict, evaluations)
    if baseline is not None:
        problems += _baseline_problems(baseline, evaluations)
    refuse(problems)
    given = [*evaluations, *(each for each in (verdict, benchmark, baseline) if each is not None)]
    return Report(
        gemquant=__version__,
        sources=tuple(each.source for each in given),
        verdict=None if verdict is None else verdict.document,
        comparisons=_comparisons([each.document for each in evaluations]),
        benchmark=None if benchmark is None else benchmark.document,
        history=None if baseline is None else _history(baseline),
    )


def _history(baseline: Given[Baseline]) -> BaselineHistory:
    return BaselineHistory(
        name=baseline.source.name,
        sha256=baseline.source.sha256,
        original=baseline.document.original,
        suite=baseline.document.suite,
        entries=baseline.document.history,
    )


def _key(document: EvaluationDocument) -> tuple[object, ...]:
    """What must be equal for figures to be comparable."""
    suite = document.suite
    settings = tuple(sorted((name, str(value)) for name, value in document.settings.items()))
    return document.original.digest, suite.name, suite.version, suite.token_stream, settings


def _comparisons(documents: Sequence[EvaluationDocument]) -> tuple[Comparison, ...]:
    names = Counter(
        name
        for name, _ in {
            (each.name, each.digest) for document in documents for each in document.artifacts
        }
    )
    alike: dict[tuple[object, ...], list[EvaluationDocument]] = {}
    for document in documents:
        alike.setdefault(_key(document), []).append(document)
    comparisons = []
    for group in alike.values():
        artifacts = tuple(
            MeasuredArtifact(
                label=each.name
                if names[each.name] == 1
                else f"{each.name} ({_short(each.digest)})",
                gemquant=document.gemquant,
                machine=document.machine,
                evaluation=each,
            )
            for document in group
            for each in document.artifacts
        )
        comparisons.append(
            Comparison(
                original=group[0].original,
                suite=group[0].suite,
                settings=group[0].settings,
                artifacts=artifacts,
                tradeoffs=tradeoffs(artifacts),
            )
        )
    return tuple(comparisons)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:DIGEST_SHOWN]


def _repeated(evaluations: Sequence[Given[EvaluationDocument]]) -> list[GemquantError]:
    counts = Counter(
        (each.name, each.digest, _key(given.document))
        for given in evaluations
        for each in given.document.artifacts
    )
    return [
        UsageError(
            f"{name}: {count} evaluations of the same artifact on the same tokens.",
            hint="Give each once.",
        )
        for (name, _, _), count in counts.items()
        if count > 1
    ]


def _verdict_problems(
    verdict: Given[Verdict], evaluations: Sequence[Given[EvaluationDocument]]
) -> list[GemquantError]:
    measured = {
        (each.name, each.digest) for given in evaluations for each in given.document.artifacts
    }
    return [
        NotComparableError(
            f"{verdict.source.name}: its verdict on {each.name} is of {each.digest}, which none of "
            "the evaluations measured.",
            hint="Give the evaluations that the gate was given.",
        )
        for each in verdict.document.artifacts
        if (each.name, each.digest) not in measured
    ]


def _baseline_problems(
    baseline: Given[Baseline], evaluations: Sequence[Given[EvaluationDocument]]
) -> list[GemquantError]:
    here = {each.document.original.digest for each in evaluations}
    of = baseline.document.original
    if not evaluations or of.digest in here:
        return []
    others = " and ".join(sorted({each.document.original.ref for each in evaluations}))
    return [
        NotComparableError(
            f"{baseline.source.name}: a baseline of {of.ref} ({of.digest}), not of {others}.",
            hint="Give the baseline of the model that was evaluated.",
        )
    ]
