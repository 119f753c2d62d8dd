"""Scores of tasks as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gemquant.cli.render import print_tables, table

if TYPE_CHECKING:
    from gemquant.measure.tasks.document import (
        Drop,
        MetricResult,
        TaskResult,
        TaskScore,
        TasksDocument,
    )

NONE = "–"


def tasks(document: TasksDocument) -> None:
    """Print every task that was named, then notes."""
    shown = [
        result
        for result in document.tasks
        if result.member_of is None or not _has_group(result, document)
    ]
    numbers = ("artifact", "original", "drop")
    scores = table("task", "run", "metric", *numbers, numbers=numbers)
    numbers = ("artifact", "published", "drop")
    published = table("task", "metric", *numbers, "", numbers=numbers)
    for result in shown:
        for row in _rows(result):
            scores.add_row(*row)
        for row in _published(result):
            published.add_row(*row)
    print_tables(*_head(document), "", scores, "", *_remarks(document))
    if published.row_count:
        print_tables("", published, "", *_sources(shown))


def _has_group(result: TaskResult, document: TasksDocument) -> bool:
    """Whether a task's group has scores of its own; its members are then only in the JSON."""
    return any(each.task == result.member_of and each.metrics for each in document.tasks)


def _head(document: TasksDocument) -> Iterator[str]:
    settings = document.settings
    for role, model in (("artifact", document.artifact), ("original", document.original)):
        if model is not None:
            yield f"{role}: {model.name}: {model.runtime}"
    chat = "chat template" if settings.chat_template else "no chat template"
    yield (
        f"lm-eval {document.lm_eval}; {chat}; one <bos>; windows of at most "
        f"{settings.max_length} tokens"
    )


def _rows(result: TaskResult) -> Iterator[tuple[str, ...]]:
    if result.skipped is not None:
        yield result.task, "skipped", "", "", "", ""
    for number, metric in enumerate(result.metrics):
        first = number == 0
        yield (
            result.task if first else "",
            _settings(result) if first else "",
            _name(metric),
            _score(metric.artifact),
            NONE if metric.original is None else _score(metric.original),
            NONE if metric.drop is None else _drop(metric.drop),
        )


def _settings(result: TaskResult) -> str:
    shots = "mixed" if result.num_fewshot is None else f"{result.num_fewshot}-shot"
    whole = result.samples == result.samples_in_all
    return f"{shots}, {result.samples}" + ("" if whole else f" of {result.samples_in_all}")


def _name(metric: MetricResult) -> str:
    name = metric.metric + ("" if metric.filter == "none" else f", {metric.filter}")
    return name if metric.higher_is_better else f"{name} ↓"


def _score(score: TaskScore) -> str:
    error = "" if score.standard_error is None else f" ± {_figure(score.standard_error)}"
    return f"{_figure(score.value)}{error}"


def _figure(value: float, sign: str = "") -> str:
    """Write a share with three decimals, anything larger with five figures."""
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.5g}"


def _drop(drop: Drop) -> str:
    if drop.low is None or drop.high is None:
        return _figure(drop.value, "+")
    return f"{_figure(drop.value, '+')} [{_figure(drop.low, '+')}, {_figure(drop.high, '+')}]"


def _published(result: TaskResult) -> Iterator[tuple[str, ...]]:
    for metric in result.metrics:
        figure = metric.published
        if figure is not None:
            drop = NONE if figure.drop is None else _figure(figure.drop, "+")
            note = f"not compared: {figure.not_compared}" if figure.not_compared else ""
            scores = (_score(metric.artifact), _figure(figure.value), drop)
            yield (result.task, _name(metric), *scores, note)


def _sources(shown: Sequence[TaskResult]) -> Iterator[str]:
    yield "Published figures may use other prompts and answer parsing, even if compared."
    for result in shown:
        for metric in result.metrics:
            if metric.published is not None:
                yield f"{metric.published.wording} ({metric.published.source})"


def _remarks(document: TasksDocument) -> Iterator[str]:
    yield (
        "±: standard error over samples. drop: how much worse the artifact is, with its paired "
        "95 % interval; + is worse. ↓: lower is better."
    )
    for result in document.tasks:
        if result.skipped is not None:
            yield f"skipped: {result.task}: {result.skipped}"
        for metric in result.metrics:
            if metric.drop is not None and metric.drop.no_interval is not None:
                yield f"no interval: {result.task} {metric.metric}: {metric.drop.no_interval}"
    for note in document.notes:
        yield f"caution: {note}"
