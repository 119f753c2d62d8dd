"""Figures that a model's maker published, and when they may stand beside a measured one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from gemquant.core.json_document import Record
from gemquant.errors import UsageError
from gemquant.measure.tasks.document import PublishedFigure

_LIMIT_BYTES = 4_000_000


class Figure(Record):
    """One published figure.

    num_fewshot, chat: None where the source does not say, or it does not matter.
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
    """A file of figures. sources: longer texts that figures name by their key."""

    figure: tuple[Figure, ...]
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(each.model, each.task, each.metric, each.filter) for each in self.figure]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{' '.join(str(part) for part in twice if part)} stands twice")
        return self


def shipped_figures() -> tuple[Figure, ...]:
    """Those of Google's model cards."""
    text = files("gemquant.measure.tasks").joinpath("published.toml").read_text(encoding="utf-8")
    return _figures(tomllib.loads(text))


def read_figures(path: Path) -> tuple[Figure, ...]:
    """Read a user's TOML or JSON file. UsageError names the file and what is wrong in it."""
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise UsageError(f"--published {path}: larger than {_LIMIT_BYTES} bytes.")
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return _figures(given)
    except OSError as error:
        raise UsageError(f"--published {path}: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"--published {path}: {where}: {first['msg']}.", hint="docs/tasks.md shows a file."
        ) from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and TOMLDecodeError are some
        raise UsageError(f"--published {path}: {error}.") from None


def _figures(given: Any) -> tuple[Figure, ...]:
    read = PublishedFile.model_validate(given)
    return tuple(
        each.model_copy(update={"source": read.sources.get(each.source, each.source)})
        for each in read.figure
    )


class Run(Record):
    """How a task was run, as far as it decides what its score may be compared with."""

    task: str
    metric: str
    filter: str
    num_fewshot: int | None
    limit: int | None
    chat_template: bool


def figure_for(model: str | None, run: Run, figures: Sequence[Figure]) -> Figure | None:
    """The figure of a model for a task and metric, the last where several files have one."""
    found = [
        each
        for each in figures
        if (each.model, each.task, each.metric) == (model, run.task, run.metric)
        and each.filter in {None, run.filter}
    ]
    return found[-1] if found else None


def beside(figure: Figure, run: Run, measured: float, *, higher_is_better: bool) -> PublishedFigure:
    """The figure with the drop from it, or with the reason why the two are unlike things."""
    unlike = []
    if figure.num_fewshot is None:
        unlike.append("the source does not say how many examples it gave")
    elif figure.num_fewshot != run.num_fewshot:
        here = "mixed" if run.num_fewshot is None else f"{run.num_fewshot}-shot"
        unlike.append(f"published {figure.num_fewshot}-shot, here {here}")
    if run.limit is not None:
        unlike.append(f"here only the first {run.limit} samples")
    if run.chat_template != figure.chat:
        made = "an instruction-tuned" if figure.chat else "a pretrained"
        here = "in" if run.chat_template else "without"
        unlike.append(f"published of {made} model, here {here} the chat template")
    reason = "; ".join(unlike) or None
    sign = 1 if higher_is_better else -1
    return PublishedFigure(
        value=figure.value,
        wording=figure.wording,
        source=figure.source,
        drop=None if reason else sign * (figure.value - measured),
        not_compared=reason,
    )
