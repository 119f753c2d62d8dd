"""What artifacts are held against: measured once, committed, changed only with a reason.

A baseline is of one original and one suite of tokens. The JSON Schema in
``docs/baseline.schema.json`` is generated from these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level, OriginalRecord, SuiteRecord
from gemquant.core.json_document import Document, Record, read_document

SCHEMA_VERSION: Literal[1] = 1


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
        description="Largest anonymous memory of the process; null where the system does not tell."
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

    reason: str = Field(min_length=1, description="Why, as it was given.")
    commit: str | None = Field(
        default=None, description="Commit of the repository that the baseline lies in, if known."
    )
    gemquant: str = Field(description="The program's version.")
    suite_version: int = Field(ge=1, description="Version of the suite.")
    artifacts: tuple[Headline, ...] = Field(
        description="What was written then, one per artifact and level."
    )


class Baseline(Document):
    """What later artifacts of one original are compared with."""

    schema_version: Literal[1] = Field(
        default=SCHEMA_VERSION, description="Version of this document's layout."
    )
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
            raise ValueError(f"artifacts that stand twice: {', '.join(twice)}")
        return self

    def entry(self, name: str) -> BaselineEntry | None:
        """One artifact's, or None where it is not there."""
        return next((each for each in self.artifacts if each.name == name), None)


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline. UsageError names the file and what is wrong in it."""
    return read_document(
        Baseline,
        path,
        hint="Baselines are written by `gemquant gate … --update-baseline --reason TEXT`.",
    )
