"""Whether two measurements are of the same thing; every reason why they are not."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    LevelEvaluation,
    SliceEvaluation,
)
from gemquant.measure.gate.baseline import Baseline, BaselineEntry

INTERVALS_ONLY = ("seed", "interval_seed", "bootstrap_seed", "resamples")
"""Settings that decide intervals, not what is measured; the gate makes its own."""


def document_mismatches(document: EvaluationDocument, baseline: Baseline) -> Iterator[str]:
    """Why nothing in a document can be compared with anything in a baseline."""
    new, old = document.original, baseline.original
    if new.digest != old.digest:
        yield (
            f"measured against another original: {new.ref!r} ({new.digest}), and the baseline is "
            f"of {old.ref!r} ({old.digest})"
        )
    suite, kept = document.suite, baseline.suite
    if (suite.name, suite.version) != (kept.name, kept.version):
        yield (
            f"measured on suite {suite.name!r} version {suite.version}, and the baseline on "
            f"{kept.name!r} version {kept.version}"
        )
    elif suite.token_stream != kept.token_stream:
        yield (
            f"measured on other tokens of suite {suite.name!r} ({suite.token_stream}), and the "
            f"baseline on {kept.token_stream}: other slices, windows, lengths or another tokenizer"
        )


def artifact_mismatches(
    artifact: ArtifactEvaluation, settings: Mapping[str, object], entry: BaselineEntry
) -> Iterator[str]:
    """Why an artifact cannot be compared with its entry, apart from its levels."""
    for key in sorted({*settings, *entry.settings} - set(INTERVALS_ONLY)):
        new, old = settings.get(key), entry.settings.get(key)
        if new != old:
            yield f"measured with {key} {new!r}, and the baseline with {old!r}"
    if not any(each.not_run is None for each in artifact.levels):
        yield "nothing of it was measured"


def missing_artifact(name: str, baseline: Baseline, file: str) -> str:
    """Say that a baseline knows nothing of an artifact, and how to tell it."""
    known = ", ".join(repr(each.name) for each in baseline.artifacts)
    command = (
        f"gemquant gate {shlex.quote(name)} --baseline {shlex.quote(file)} --update-baseline "
        "--reason 'a new artifact'"
    )
    return f"the baseline holds {known}, not {name!r}; to add it: {command}"


def level_mismatches(before: LevelEvaluation, now: LevelEvaluation | None) -> Iterator[str]:
    """Why a level that the baseline holds cannot be compared."""
    if now is None:
        yield f"level {before.level}: the baseline holds it, and it was not measured"
        return
    if now.not_run is not None:
        yield f"level {before.level}: not run, {now.not_run}"
        return
    for old in before.slices:
        new = next((each for each in now.slices if each.slice == old.slice), None)
        if new is None:
            yield f"level {before.level}: slice {old.slice!r} was not measured"
        elif _tokens(new) != _tokens(old):
            yield f"level {before.level}: slice {old.slice!r} was measured on other tokens"


def _tokens(measured: SliceEvaluation) -> tuple[str, int, tuple[int, ...]]:
    return measured.token_stream, measured.seq_len, measured.windows.tokens
