"""The report: evaluations, verdict, benchmark and baseline, put side by side.

Markdown, JUnit XML and HTML are made from a ``Report``. What may not be compared is in different
comparisons.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from gemquant import __version__
from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    Level,
    OriginalRecord,
    SuiteRecord,
)
from gemquant.errors import GemquantError, NotComparableError, UsageError, refuse
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.baseline import Baseline
from gemquant.measure.gate.verdict import Verdict
from gemquant.measure.report.tradeoff import Tradeoff, tradeoffs

T = TypeVar("T")
SourceKind = Literal["evaluation", "verdict", "benchmark", "baseline"]
DIGEST_SHOWN = 8


@dataclass(frozen=True)
class Source(Generic[T]):
    """A document and the file it was read from. name: without folders. sha256: of its bytes."""

    kind: SourceKind
    name: str
    sha256: str
    document: T

    @classmethod
    def read(cls, kind: SourceKind, path: Path, reader: Callable[[Path], T]) -> Source[T]:
        """Read and check a file. UsageError names it and what is wrong in it."""
        document = reader(path)
        with path.open("rb") as file:
            return cls(kind, path.name, hashlib.file_digest(file, "sha256").hexdigest(), document)


@dataclass(frozen=True)
class MeasuredArtifact:
    """One artifact with all that was measured of it.

    label: its name in this report, with the beginning of its digest where another artifact has the
    same name. gemquant, machine: what measured it.
    """

    label: str
    gemquant: str
    machine: str
    evaluation: ArtifactEvaluation


@dataclass(frozen=True)
class Comparison:
    """Artifacts of one original, on one suite of tokens, with the same settings."""

    original: OriginalRecord
    suite: SuiteRecord
    settings: Mapping[str, str | int | float | bool]
    artifacts: Sequence[MeasuredArtifact]
    tradeoffs: Sequence[Tradeoff]


@dataclass(frozen=True)
class Report:
    """All that one call of ``gemquant report`` was given; None for a document that was not."""

    sources: Sequence[Source[Any]]
    comparisons: Sequence[Comparison]
    verdict: Verdict | None = None
    benchmark: Benchmark | None = None
    baseline: Source[Baseline] | None = None
    gemquant: str = __version__

    @property
    def levels(self) -> Sequence[Level]:
        """The levels that anything was measured at, in the order of first mention."""
        artifacts = (each for comparison in self.comparisons for each in comparison.artifacts)
        levels = (level.level for each in artifacts for level in each.evaluation.levels)
        return tuple(dict.fromkeys(levels))


def assemble(
    evaluations: Sequence[Source[EvaluationDocument]],
    *,
    verdict: Source[Verdict] | None = None,
    benchmark: Source[Benchmark] | None = None,
    baseline: Source[Baseline] | None = None,
) -> Report:
    """Put documents side by side.

    Evaluations are in one comparison if original, tokens and settings are the same. Errors, all at
    once: nothing measured, an artifact given twice, a verdict on artifacts that no evaluation
    measured, a baseline of another original.
    """
    refuse(_problems(evaluations, verdict, baseline))
    sources: list[Source[Any] | None] = [*evaluations, verdict, benchmark, baseline]
    return Report(
        sources=[each for each in sources if each is not None],
        comparisons=_comparisons([each.document for each in evaluations]),
        verdict=None if verdict is None else verdict.document,
        benchmark=None if benchmark is None else benchmark.document,
        baseline=baseline,
    )


def _problems(
    evaluations: Sequence[Source[EvaluationDocument]],
    verdict: Source[Verdict] | None,
    baseline: Source[Baseline] | None,
) -> Iterator[GemquantError]:
    documents = [each.document for each in evaluations]
    measured = Counter(
        (artifact.name, artifact.digest, _key(document))
        for document in documents
        for artifact in document.artifacts
    )
    if not measured:
        yield UsageError(
            "No artifact in any evaluation.",
            hint="Measure some: gemquant eval ARTIFACT… --output eval.json",
        )
    for (name, _, _), count in measured.items():
        if count > 1:
            yield UsageError(
                f"{name}: {count} evaluations of the same artifact on the same tokens.",
                hint="Give each once.",
            )
    known = {(name, digest) for name, digest, _ in measured}
    for judged in verdict.document.artifacts if verdict is not None else ():
        if verdict is not None and (judged.name, judged.digest) not in known:
            yield NotComparableError(
                f"{verdict.name}: its verdict on {judged.name} is of {judged.digest}, which none "
                "of the evaluations measured.",
                hint="Give the evaluations that the gate was given.",
            )
    originals = {each.original.digest: each.original.ref for each in documents}
    if baseline is not None and documents:
        original = baseline.document.original
        if original.digest not in originals:
            yield NotComparableError(
                f"{baseline.name}: a baseline of {original.ref} ({original.digest}), not of "
                f"{' and '.join(sorted(set(originals.values())))}.",
                hint="Give the baseline of the model that was evaluated.",
            )


def _key(document: EvaluationDocument) -> tuple[object, ...]:
    """What must be equal for figures to be comparable."""
    suite = document.suite
    settings = tuple(sorted((name, str(value)) for name, value in document.settings.items()))
    return document.original.digest, suite.name, suite.version, suite.token_stream, settings


def _comparisons(documents: Sequence[EvaluationDocument]) -> list[Comparison]:
    artifacts = {(each.name, each.digest) for document in documents for each in document.artifacts}
    names = Counter(name for name, _ in artifacts)
    alike: dict[tuple[object, ...], list[EvaluationDocument]] = {}
    for document in documents:
        alike.setdefault(_key(document), []).append(document)
    return [_comparison(group, names) for group in alike.values()]


def _comparison(documents: Sequence[EvaluationDocument], names: Mapping[str, int]) -> Comparison:
    artifacts = [
        MeasuredArtifact(_label(each, names), document.gemquant, document.machine, each)
        for document in documents
        for each in document.artifacts
    ]
    first = documents[0]
    curves = tradeoffs({each.label: each.evaluation for each in artifacts})
    return Comparison(first.original, first.suite, first.settings, artifacts, curves)


def _label(artifact: ArtifactEvaluation, names: Mapping[str, int]) -> str:
    if names[artifact.name] == 1:
        return artifact.name
    return f"{artifact.name} ({artifact.digest.removeprefix('sha256:')[:DIGEST_SHOWN]})"
