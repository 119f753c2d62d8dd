"""The report as a document: evaluations, verdict, benchmark and history, put side by side.

All other forms of the report are made from this one. The JSON Schema in
``docs/report.schema.json`` is generated from these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level, OriginalRecord, SuiteRecord
from gemquant.core.json_document import Document, Record
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.baseline import HistoryEntry
from gemquant.measure.gate.verdict import Verdict

SCHEMA_VERSION: Literal[1] = 1

SourceKind = Literal["evaluation", "verdict", "benchmark", "baseline"]


class SourceFile(Record):
    """One file that the report was made from."""

    kind: SourceKind = Field(description="What it holds.")
    name: str = Field(description="Its name, without folders.")
    sha256: str = Field(description="Of its bytes, hexadecimal.")


class MeasuredArtifact(Record):
    """One artifact with all that was measured of it."""

    label: str = Field(
        description="What it is called in this report: its name, with the beginning of its digest "
        "where another artifact has the same name."
    )
    gemquant: str = Field(description="Version of the program that measured it.")
    machine: str = Field(description="Fingerprint of the machine that measured it.")
    evaluation: ArtifactEvaluation = Field(description="What was measured.")


class Point(Record):
    """One artifact's size and divergence."""

    label: str = Field(description="The artifact.")
    size_bytes: int = Field(description="Size of all its files.")
    kl_mean: float = Field(description="Mean divergence, nats per token.")
    on_front: bool = Field(
        description="No other artifact here is smaller and as close, or closer and as small."
    )


class Tradeoff(Record):
    """Size against divergence, at one level."""

    level: Level = Field(description="Of all its points.")
    slice: str | None = Field(
        description="On which tokens; null for all slices, each token weighing the same."
    )
    points: tuple[Point, ...] = Field(
        description="The artifacts that were measured there, smallest first."
    )


class Comparison(Record):
    """Artifacts of one original, on one suite of tokens, measured alike: comparable figures."""

    original: OriginalRecord = Field(description="The model before.")
    suite: SuiteRecord = Field(description="The text.")
    settings: Mapping[str, str | int | float | bool] = Field(
        description="What else decides the figures."
    )
    artifacts: tuple[MeasuredArtifact, ...] = Field(description="In the order given.")
    tradeoffs: tuple[Tradeoff, ...] = Field(
        description="One per level for all slices together, and one for each slice."
    )


class BaselineHistory(Record):
    """How a baseline came to be what it is."""

    name: str = Field(description="Its file's name.")
    sha256: str = Field(description="Of the file's bytes, hexadecimal.")
    original: OriginalRecord = Field(description="The model that it is of.")
    suite: SuiteRecord = Field(description="The text that it is measured on.")
    entries: tuple[HistoryEntry, ...] = Field(description="Its updates, the oldest first.")


class Report(Document):
    """All that one call of ``gemquant report`` was given."""

    schema_version: Literal[1] = Field(
        default=SCHEMA_VERSION, description="Version of this document's layout."
    )
    gemquant: str = Field(description="Version of the program that made the report.")
    sources: tuple[SourceFile, ...] = Field(description="The files it was made from.")
    verdict: Verdict | None = Field(description="What the gate decided; null without a verdict.")
    comparisons: tuple[Comparison, ...] = Field(
        description="Figures stand in one comparison only where they may be compared."
    )
    benchmark: Benchmark | None = Field(description="Speed and memory; null without a benchmark.")
    history: BaselineHistory | None = Field(description="Of the baseline; null without one.")

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that anything was measured at, in the order of first mention."""
        return tuple(
            dict.fromkeys(
                level.level
                for comparison in self.comparisons
                for artifact in comparison.artifacts
                for level in artifact.evaluation.levels
            )
        )
