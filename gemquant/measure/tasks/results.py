"""Turns lm-eval's results of one or two models into records: scores, drops, published figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemquant.errors import ArtifactError
from gemquant.measure.tasks.document import Drop, MetricResult, Settings, TaskResult, TaskScore
from gemquant.measure.tasks.harness import Loaded
from gemquant.measure.tasks.paired import Key, Samples, drop
from gemquant.measure.tasks.published import Figure, TaskRun, compared, figure_for

Results = Mapping[str, Any]
"""What lm-eval's ``simple_evaluate`` returns."""


@dataclass(frozen=True)
class Context:
    """What scores are compared with: published figures of the model, and how it was run."""

    base_model: str | None
    figures: Sequence[Figure]
    settings: Settings


def task_results(
    names: Sequence[str], loaded: Loaded, runs: Sequence[Results], context: Context
) -> tuple[TaskResult, ...]:
    """Return every task in the requested order, a group before its members.

    runs: of the artifact and of the original; fewer if they did not run.
    """
    results: list[TaskResult] = []
    for name in names:
        if name in loaded.skipped:
            results.append(TaskResult(task=name, skipped=loaded.skipped[name]))
            continue
        # A name that is neither a task nor a group is a tag, which has no score.
        known = name in runs[0]["results"] or name in runs[0]["group_subtasks"]
        below = _below(name, runs[0]) if known else loaded.members[name]
        if name in runs[0]["results"]:
            results.append(_result(name, None, runs, context))
        results += [_result(each, name, runs, context) for each in below]
    return tuple(results)


def _below(name: str, run: Results) -> Iterator[str]:
    """Yield groups and tasks of a group, outermost first."""
    for child in run["group_subtasks"].get(name, ()):
        yield child
        yield from _below(child, run)


def _leaves(name: str, run: Results) -> list[str]:
    if name in run["samples"]:
        return [name]
    return [leaf for child in run["group_subtasks"].get(name, ()) for leaf in _leaves(child, run)]


def _result(name: str, group: str | None, runs: Sequence[Results], context: Context) -> TaskResult:
    run, leaves = runs[0], _leaves(name, runs[0])
    shots = {run["n-shot"].get(leaf) for leaf in leaves}
    counts = [run["n-samples"][leaf] for leaf in leaves]
    version = run["versions"].get(name)
    num_fewshot = shots.pop() if len(shots) == 1 else None
    return TaskResult(
        task=name,
        member_of=group,
        version=None if version is None else str(version),
        num_fewshot=num_fewshot,
        samples=sum(count["effective"] for count in counts),
        samples_in_all=sum(count["original"] for count in counts),
        metrics=tuple(
            _metric(name, key, leaves, num_fewshot, runs, context)
            for key in _metrics(run["results"][name])
        ),
    )


def _metrics(scores: Mapping[str, Any]) -> list[str]:
    """Return the keys ``metric,filter`` of scores, without their standard errors."""
    return [
        key
        for key, value in scores.items()
        if "," in key and not key.partition(",")[0].endswith("_stderr") and _number(value)
    ]


def _metric(
    task: str,
    key: str,
    leaves: Sequence[str],
    num_fewshot: int | None,
    runs: Sequence[Results],
    context: Context,
) -> MetricResult:
    name, _, reading = key.partition(",")
    higher = _higher_is_better([task, *leaves], name, runs[0])
    artifact, *original = [_score(run["results"][task], key, task) for run in runs]
    loss: Drop | None = None
    if original:
        first, second = (_samples(leaves, name, reading, run) for run in (runs[1], runs[0]))
        loss = drop(
            original[0].value,
            artifact.value,
            None if first is None or second is None else (first, second),
            higher_is_better=higher,
            seed=context.settings.seed,
        )
    how = TaskRun(
        task=task,
        metric=name,
        filter=reading,
        num_fewshot=num_fewshot,
        limit=context.settings.limit,
        chat_template=context.settings.chat_template,
    )
    figure = figure_for(context.base_model, how, context.figures)
    return MetricResult(
        metric=name,
        filter=reading,
        higher_is_better=higher,
        artifact=artifact,
        original=original[0] if original else None,
        drop=loss,
        published=None
        if figure is None
        else compared(figure, how, artifact.value, higher_is_better=higher),
    )


def _higher_is_better(names: Sequence[str], metric: str, run: Results) -> bool:
    """Ask the task, then its members; more is better if none declares it."""
    declared = (run["higher_is_better"].get(name, {}).get(metric) for name in names)
    return next((bool(each) for each in declared if each is not None), True)


def _score(scores: Mapping[str, Any], key: str, task: str) -> TaskScore:
    name, _, reading = key.partition(",")
    error: Any = scores.get(f"{name}_stderr,{reading}")
    value = float(scores[key])
    if not math.isfinite(value):
        raise ArtifactError(f"{task}: {name} is {value}: the model's predictions are broken.")
    known = float(error) if _number(error) else math.nan  # "N/A" if there is none
    return TaskScore(value=value, standard_error=known if math.isfinite(known) else None)


def _samples(leaves: Sequence[str], metric: str, reading: str, run: Results) -> Samples | None:
    """Return a metric's values in all leaf tasks; None if some are not (weighted) numbers."""
    values: dict[Key, float | tuple[float, float]] = {}
    for leaf in leaves:
        for sample in run["samples"][leaf]:
            if sample["filter"] != reading or metric not in sample:
                continue
            value = sample[metric]
            identity = (leaf, int(sample["doc_id"]), str(sample["prompt_hash"]))
            if _number(value):
                values[identity] = float(value)
            elif isinstance(value, tuple | list) and len(value) == 2 and all(map(_number, value)):
                values[identity] = (float(value[0]), float(value[1]))
            else:
                return None
    return values or None


def _number(value: Any) -> bool:
    """Whether a value is a number, not a text or a list."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)
