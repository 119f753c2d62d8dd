"""Published figures of a model, and whether they can be compared with a measured one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from gemquant.core.json_document import Record
from gemquant.core.untrusted import UntrustedFile
from gemquant.measure.tasks.document import PublishedFigure

_LIMIT_BYTES = 4_000_000


class Figure(Record):
    """One published figure.

    num_fewshot: None if the source does not give it. filter: None if it does not matter.
    """

    model: str
    task: str
    metric: str
    value: float
    wording: str
    source: str
    num_fewshot: int | None = Field(default=None, ge=0)
    chat: bool = False
    filter: str | None = None


class PublishedFile(Record):
    """A file of figures. sources: longer texts that figures refer to by key."""

    figure: tuple[Figure, ...]
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(each.model, each.task, each.metric, each.filter) for each in self.figure]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{' '.join(str(part) for part in twice if part)} occurs twice")
        return self


def shipped_figures() -> tuple[Figure, ...]:
    """Return the figures of Google's model cards."""
    return read_figures(Path(__file__).with_name("published.toml"))


def read_figures(path: Path) -> tuple[Figure, ...]:
    """Read a user's TOML or JSON file; UsageError names the file and what is wrong."""
    hint, label = "docs/tasks.md shows a file.", f"--published {path}"
    file = UntrustedFile(path, _LIMIT_BYTES, hint=hint, label=label).table(PublishedFile)
    return tuple(
        each.model_copy(update={"source": file.sources.get(each.source, each.source)})
        for each in file.figure
    )


class TaskRun(Record):
    """How a task was run, as far as comparisons depend on it."""

    task: str
    metric: str
    filter: str
    num_fewshot: int | None
    limit: int | None
    chat_template: bool


def figure_for(model: str | None, run: TaskRun, figures: Sequence[Figure]) -> Figure | None:
    """Return a model's figure for a task and metric; the last if several files have one."""
    matching = [
        each
        for each in figures
        if (each.model, each.task, each.metric) == (model, run.task, run.metric)
        and each.filter in {None, run.filter}
    ]
    return matching[-1] if matching else None


def compared(
    figure: Figure, run: TaskRun, measured: float, *, higher_is_better: bool
) -> PublishedFigure:
    """Return the figure with the drop from it, or why the two cannot be compared."""
    reasons = []
    if figure.num_fewshot is None:
        reasons.append("the source does not give the number of examples")
    elif figure.num_fewshot != run.num_fewshot:
        shots = "mixed" if run.num_fewshot is None else f"{run.num_fewshot}-shot"
        reasons.append(f"published {figure.num_fewshot}-shot, here {shots}")
    if run.limit is not None:
        reasons.append(f"here only the first {run.limit} samples")
    if run.chat_template != figure.chat:
        model = "an instruction-tuned" if figure.chat else "a pretrained"
        how = "in" if run.chat_template else "without"
        reasons.append(f"published for {model} model, here {how} the chat template")
    reason = "; ".join(reasons) or None
    sign = 1 if higher_is_better else -1
    return PublishedFigure(
        value=figure.value,
        wording=figure.wording,
        source=figure.source,
        drop=None if reason else sign * (figure.value - measured),
        not_compared=reason,
    )
