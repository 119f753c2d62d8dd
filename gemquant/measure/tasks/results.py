"""lm-eval's results of one or two models as records: scores, drops, published figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemquant.errors import ArtifactError
from gemquant.measure.tasks.document import Drop, MetricResult, Settings, TaskResult, TaskScore
from gemquant.measure.tasks.harness import Loaded
from gemquant.measure.tasks.paired import Key, Samples, drop
from gemquant.measure.tasks.published import Figure, Run, beside, figure_for

Results = Mapping[str, Any]
"""What lm-eval's ``simple_evaluate`` returns."""


@dataclass(frozen=True)
class Context:
    """What scores stand beside: the model's published figures, and how it was run."""

    base_model: str | None
    figures: Sequence[Figure]
    settings: Settings


def task_results(
    names: Sequence[str], loaded: Loaded, runs: Sequence[Results], context: Context
) -> tuple[TaskResult, ...]:
    """Every task in the order asked for, the members of a group behind it.

    runs: of the artifact, of the original; fewer where they did not run.
    """
    made: list[TaskResult] = []
    for name in names:
        if name in loaded.skipped:
            made.append(TaskResult(task=name, skipped=loaded.skipped[name]))
            continue
        # What is neither a task nor a group is a tag, which has no score of its own.
        known = name in runs[0]["results"] or name in runs[0]["group_subtasks"]
        below = _below(name, runs[0]) if known else loaded.members[name]
        if name in runs[0]["results"]:
            made.append(_result(name, None, runs, context))
        made += [_result(each, name, runs, context) for each in below]
    return tuple(made)


def _below(name: str, run: Results) -> Iterator[str]:
    """Groups and tasks of a group, outermost first."""
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
    """Keys ``metric,filter`` of scores, their standard errors left out."""
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
    ours, *theirs = [_score(run["results"][task], key, task) for run in runs]
    lost: Drop | None = None
    if theirs:
        first, second = (_samples(leaves, name, reading, run) for run in (runs[1], runs[0]))
        lost = drop(
            theirs[0].value,
            ours.value,
            None if first is None or second is None else (first, second),
            higher_is_better=higher,
            seed=context.settings.seed,
        )
    how = Run(
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
        artifact=ours,
        original=theirs[0] if theirs else None,
        drop=lost,
        published=None
        if figure is None
        else beside(figure, how, ours.value, higher_is_better=higher),
    )


def _higher_is_better(names: Sequence[str], metric: str, run: Results) -> bool:
    """As the task or its members have it; more is better where none says."""
    told = (run["higher_is_better"].get(name, {}).get(metric) for name in names)
    return next((bool(each) for each in told if each is not None), True)


def _score(scores: Mapping[str, Any], key: str, task: str) -> TaskScore:
    name, _, reading = key.partition(",")
    error: Any = scores.get(f"{name}_stderr,{reading}")
    value = float(scores[key])
    if not math.isfinite(value):
        raise ArtifactError(f"{task}: {name} is {value}: the model's answers are not numbers.")
    known = float(error) if _number(error) else math.nan  # "N/A" where there is none
    return TaskScore(value=value, standard_error=known if math.isfinite(known) else None)


def _samples(leaves: Sequence[str], metric: str, reading: str, run: Results) -> Samples | None:
    """A metric's values in all tasks below; None where some are neither numbers nor weighted."""
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
    return Samples(values) if values else None


def _number(value: Any) -> bool:
    """Whether a value is a number: not a text, nor a list."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)
