"""The baseline: measured once, committed, changed only with a reason; and what it may judge.

A baseline is of one original and one suite of tokens. The JSON Schema in
``docs/baseline.schema.json`` is generated from these models.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    Level,
    LevelEvaluation,
    OriginalRecord,
    SliceEvaluation,
    SuiteRecord,
)
from gemquant.core.json_document import Document, Record


class BenchFigures(Record):
    """How fast an artifact ran, in one mode of one runtime."""

    runtime: str = Field(description="What ran it: `llama.cpp`, `transformers`, …")
    mode: str = Field(description="How: one of the runtime's modes.")
    settings: Mapping[str, str | int] = Field(
        description="Prompt and new tokens, threads, device and type; others are not compared."
    )
    machine: str = Field(description="Fingerprint of the machine.")
    decode_tokens_per_second: tuple[float, ...] = Field(
        min_length=1, description="Every repetition."
    )
    peak_anonymous_bytes: int | None = Field(
        description="Largest anonymous memory of the process; null if the system reports none."
    )
    peak_device_bytes: int | None = Field(
        description="Largest memory allocated on the accelerator; null without one."
    )


class BaselineEntry(Record):
    """One artifact as it was when the baseline was last updated."""

    evaluation: ArtifactEvaluation = Field(description="As `gemquant eval` measured it.")
    settings: Mapping[str, str | int | float | bool] = Field(
        description="What else decides the figures: compute type, device, seed of the intervals."
    )
    machine: str = Field(description="Fingerprint of the machine that measured it.")
    bench: tuple[BenchFigures, ...] = Field(default=(), description="How fast it ran, if known.")

    @property
    def name(self) -> str:
        """What an artifact is found by."""
        return self.evaluation.name


class Headline(Record):
    """One artifact's figures over all slices, for the history."""

    name: str = Field(description="The artifact.")
    level: Level = Field(description="Where it was measured.")
    digest: str = Field(description="Of the artifact.")
    size_bytes: int = Field(description="Size of all its files.")
    bits_per_weight: float = Field(description="As in its manifest.")
    nll_increase: float = Field(
        description="Mean negative log-likelihood after less before, nats per token."
    )
    kl_mean: float = Field(description="Mean divergence, nats per token.")
    top1: float = Field(description="Fraction of tokens with the same first token.")


class HistoryEntry(Record):
    """One update of the baseline."""

    reason: str = Field(min_length=1, description="The text of --reason.")
    commit: str | None = Field(
        default=None, description="Commit of the repository that holds the baseline, if known."
    )
    gemquant: str = Field(description="The program's version.")
    suite_version: int = Field(ge=1, description="Version of the suite.")
    artifacts: tuple[Headline, ...] = Field(
        description="What was written then, one per artifact and level."
    )


class Baseline(Document):
    """What later artifacts of one original are compared with."""

    noun: ClassVar[str] = "baseline"
    hint: ClassVar[str] = (
        "Baselines are written by `gemquant gate … --update-baseline --reason TEXT`."
    )
    place: ClassVar[str] = "as --baseline"

    suite: SuiteRecord = Field(description="The text; another one is not comparable.")
    original: OriginalRecord = Field(description="The model before; another is not comparable.")
    artifacts: tuple[BaselineEntry, ...] = Field(
        min_length=1, description="One per artifact, by name."
    )
    history: tuple[HistoryEntry, ...] = Field(
        default=(), description="Every update with its reason, the oldest first."
    )

    @model_validator(mode="after")
    def _one_entry_each(self) -> Self:
        names = [each.name for each in self.artifacts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"artifacts listed twice: {', '.join(twice)}")
        return self

    def entry(self, name: str) -> BaselineEntry | None:
        """One artifact's, or None where it is not there."""
        return next((each for each in self.artifacts if each.name == name), None)


# ---------------------------------------------------------------- comparable or not

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
    suite, old_suite = document.suite, baseline.suite
    if (suite.name, suite.version) != (old_suite.name, old_suite.version):
        yield (
            f"measured on suite {suite.name!r} version {suite.version}, and the baseline on "
            f"{old_suite.name!r} version {old_suite.version}"
        )
    elif suite.token_stream != old_suite.token_stream:
        yield (
            f"measured on other tokens of suite {suite.name!r} ({suite.token_stream}), and the "
            f"baseline on {old_suite.token_stream}: "
            "other slices, windows, lengths or another tokenizer"
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
    """Report an artifact that a baseline does not hold, and how to add it."""
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
