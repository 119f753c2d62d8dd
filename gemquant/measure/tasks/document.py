"""The document of ``gemquant tasks``.

The JSON Schema in ``docs/tasks-document.schema.json`` is generated from these models.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from gemquant.core.json_document import Document, Record


class ModelRecord(Record):
    """A model that answered."""

    name: str = Field(description="The artifact's folder or file name; the original as named.")
    container: str = Field(description="The container format; `checkpoint` for an original.")
    base_model: str | None = Field(default=None, description="Hub id, if known.")
    digest: str | None = Field(
        default=None,
        description="Of an artifact's files, as in evaluation documents; null for anything else.",
    )
    runtime: str = Field(description="What computed, with versions, type and place.")


class Settings(Record):
    """Settings that decide the figures."""

    limit: int | None = Field(description="First samples of each task only; null for all.")
    num_fewshot: int | None = Field(description="Examples requested; null for each task's own.")
    chat_template: bool = Field(description="Whether prompts went through the chat template.")
    max_length: int = Field(description="Longest window in tokens, BOS included.")
    batch_size: int = Field(description="Windows per forward pass, if the runtime batches.")
    device: str = Field(description="Where the runtimes computed.")
    dtype: str = Field(description="Type computed in, if the runtime supports a choice.")
    seed: int = Field(description="Seed of few-shot examples and of the intervals.")
    task_code: bool = Field(description="Whether Python from the task folder was allowed to run.")

    def shortened(self, longest: int | None) -> Self:
        """The same with windows of at most so many tokens; None for no bound."""
        length = self.max_length if longest is None else min(self.max_length, longest)
        return self.model_copy(update={"max_length": length})


class TaskScore(Record):
    """One model's score."""

    value: float = Field(description="As lm-eval aggregates it; a share is from 0 to 1.")
    standard_error: float | None = Field(
        default=None, description="lm-eval's; null if it gives none."
    )


class Drop(Record):
    """How much worse the artifact is than the original; positive is worse.

    If more is better: the original's minus the artifact's; else the reverse.
    """

    value: float = Field(description="Unrounded.")
    low: float | None = Field(
        default=None, description="Lower end of the paired 95 % interval; null if there is none."
    )
    high: float | None = Field(default=None, description="Upper end of it.")
    samples: int | None = Field(
        default=None, description="Samples that both answered, with the same prompts."
    )
    no_interval: str | None = Field(
        default=None, description="Why there is no interval; null if there is one."
    )


class PublishedFigure(Record):
    """A published figure of the model, and whether it can be compared."""

    value: float = Field(description="On the scale of the score.")
    wording: str = Field(description="Benchmark, setting and figure in the source's words.")
    source: str = Field(description="Where it was published.")
    drop: float | None = Field(
        default=None, description="Published minus measured; null if they cannot be compared."
    )
    not_compared: str | None = Field(
        default=None, description="Why the two are not compared; null if they are."
    )


class MetricResult(Record):
    """One metric of a task."""

    metric: str = Field(description="lm-eval's name: `acc`, `acc_norm`, `exact_match`, …")
    filter: str = Field(description="How answers were read: `none`, `strict-match`, …")
    higher_is_better: bool = Field(description="Whether more is better.")
    artifact: TaskScore = Field(description="The artifact's.")
    original: TaskScore | None = Field(
        default=None, description="The original's on the same samples; null if it did not run."
    )
    drop: Drop | None = Field(default=None, description="The difference; null without an original.")
    published: PublishedFigure | None = Field(
        default=None, description="The figure of the model card; null if none is known."
    )


class TaskResult(Record):
    """One task, or a group of tasks."""

    task: str = Field(description="lm-eval's name.")
    member_of: str | None = Field(default=None, description="The group that it was run for.")
    version: str | None = Field(
        default=None, description="lm-eval's version of the task; it rises when a metric changes."
    )
    num_fewshot: int | None = Field(
        default=None, description="Examples before each question; null if members differ."
    )
    samples: int = Field(default=0, description="Samples answered.")
    samples_in_all: int = Field(default=0, description="Samples that the task has.")
    skipped: str | None = Field(default=None, description="Why it was not run; null if it was.")
    metrics: tuple[MetricResult, ...] = Field(default=(), description="One per metric and filter.")


class TasksDocument(Document):
    """All that one run of ``gemquant tasks`` measured."""

    noun: ClassVar[str] = "tasks document"
    hint: ClassVar[str] = "Write one with: gemquant tasks ARTIFACT -o FILE"
    place: ClassVar[str] = "to `gemquant card` as --tasks"

    gemquant: str = Field(description="The program's version.")
    lm_eval: str = Field(description="lm-eval's version.")
    artifact: ModelRecord | None = Field(
        description="What was measured; null if every task was skipped."
    )
    original: ModelRecord | None = Field(
        default=None, description="What it is compared with; null if nothing."
    )
    settings: Settings = Field(description="How.")
    tasks: tuple[TaskResult, ...] = Field(
        description="In the requested order, groups before their members."
    )
    notes: tuple[str, ...] = Field(default=(), description="Further remarks.")
