"""A baseline with new entries and the reason for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemquant import __version__
from gemquant.core.artifact.evaluation import ArtifactEvaluation, EvaluationDocument
from gemquant.core.artifact.staged_files import file_problems, write_files
from gemquant.errors import GemquantError, NotComparableError, UsageError, refuse
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.artifact_checks import bench_figures
from gemquant.measure.gate.baseline import (
    Baseline,
    BaselineEntry,
    Headline,
    HistoryEntry,
    document_mismatches,
)
from gemquant.measure.gate.t_interval import increase
from gemquant.measure.gate.text_checks import FIGURES, strata


def updated(
    documents: Sequence[EvaluationDocument],
    before: Baseline | None,
    *,
    reason: str,
    commit: str | None,
    benchmark: Benchmark | None = None,
) -> Baseline:
    """Put every artifact of the documents into a baseline, and the reason into its history.

    What is not measured again stays as it is, where it is of the same tokens; another suite
    replaces everything, and must then be of every artifact. Another original is refused.
    """
    refuse(list(_problems(documents, before)))
    entries = {each.name: each for each in before.artifacts} if before is not None else {}
    for document in documents:
        for artifact in document.artifacts:
            known = entries.get(artifact.name)
            bench = bench_figures(benchmark, artifact.name) if benchmark is not None else ()
            entries[artifact.name] = BaselineEntry(
                evaluation=artifact,
                settings=document.settings,
                machine=document.machine,
                bench=bench or (known.bench if known is not None else ()),
            )
    first = documents[0]
    entry = HistoryEntry(
        reason=reason,
        commit=commit,
        gemquant=__version__,
        suite_version=first.suite.version,
        artifacts=tuple(
            headline
            for document in documents
            for artifact in document.artifacts
            for headline in headlines(artifact)
        ),
    )
    return Baseline(
        suite=first.suite,
        original=first.original,
        artifacts=tuple(entries.values()),
        history=(*(before.history if before is not None else ()), entry),
    )


def headlines(artifact: ArtifactEvaluation) -> Iterator[Headline]:
    """An artifact's figures over all slices, one for each level that was measured."""
    for level in artifact.levels:
        if level.not_run is None and level.slices:
            means = {
                metric: increase(strata(figure, level.slices)).mean
                for metric, figure in FIGURES.items()
            }
            yield Headline(
                name=artifact.name,
                level=level.level,
                digest=artifact.digest,
                size_bytes=artifact.size_bytes,
                bits_per_weight=artifact.bits_per_weight,
                nll_increase=means["nll_increase"],
                kl_mean=means["kl_mean"],
                top1=means["top1"],
            )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, or leave what stands there as it is."""
    content = baseline.to_json()
    refuse(file_problems([path], replaceable=[path], needed_bytes=len(content)))
    write_files({path: content})


def head_commit(folder: Path) -> str | None:
    """Commit that is checked out where a file lies; None without a repository, or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _problems(
    documents: Sequence[EvaluationDocument], before: Baseline | None
) -> Iterator[GemquantError]:
    first = documents[0]
    if not any(document.artifacts for document in documents):
        yield UsageError("No artifact was measured, so there is nothing to put into a baseline.")
    for document in documents[1:]:
        if (document.original.digest, document.suite) != (first.original.digest, first.suite):
            yield NotComparableError(
                "The documents are of different originals or suites; a baseline is of one.",
                hint="Make a baseline for each.",
            )
    for document in documents:
        for artifact in document.artifacts:
            if not list(headlines(artifact)):
                yield UsageError(f"{artifact.name!r}: nothing of it was measured.")
    if before is None:
        return
    if first.original.digest != before.original.digest:
        yield NotComparableError(
            f"The baseline is of another original: {before.original.ref!r} "
            f"({before.original.digest}), and {first.original.ref!r} ({first.original.digest}) was "
            "measured.",
            hint="Choose another file with --baseline: one for each original.",
        )
        return
    names = {each.name for document in documents for each in document.artifacts}
    left = [each.name for each in before.artifacts if each.name not in names]
    if left and list(document_mismatches(first, before)):
        yield NotComparableError(
            "The baseline was measured on other tokens, and still holds "
            f"{', '.join(map(repr, left))}.",
            hint="Measure these on the new suite too, and give all of them at once.",
        )
