"""What a document of `gemquant tasks` says of an artifact, for its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.core.artifact import Manifest
from gemquant.core.artifact.card import Later, card_environment, card_template
from gemquant.core.artifact.finalize import content_digest
from gemquant.core.artifact.losses import rounded
from gemquant.measure.tasks.document import (
    Drop,
    TaskResult,
    TaskScore,
    TasksDocument,
)
from gemquant.publish.measured import refuse_others

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def shown_tasks(place: Path, manifest: Manifest) -> tuple[bytes, Later]:
    """What an artifact keeps of a document, and what its card shows of it."""
    document = TasksDocument.read(place)
    measured = document.artifact
    if measured is None or measured.digest != content_digest(manifest):
        names = [] if measured is None else [measured.name]
        refuse_others(place, names, command="gemquant tasks ARTIFACT --output FILE")
    environment = card_environment()
    environment.filters |= {"score": _score, "drop": _drop}
    template = environment.from_string(card_template("gemquant.publish", "tasks.md.jinja"))
    section = template.render(document=document)
    results = [result for task in document.tasks for result in _results(task, document)]
    return document.to_json(), Later(tuple(results), section)


def _results(task: TaskResult, document: TasksDocument) -> Iterator[EvalResult]:
    """The artifact's own scores; what was skipped is no result."""
    from huggingface_hub import EvalResult

    runtime = document.artifact.runtime if document.artifact else ""
    for each in task.metrics:
        arguments = {
            "num_few_shot": task.num_fewshot,
            "samples": task.samples,
            "samples_in_all": task.samples_in_all,
            "task_version": task.version,
            "lm_eval": document.lm_eval,
        }
        error = each.artifact.standard_error
        yield EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=task.task,
            dataset_name=task.task,
            dataset_args={key: value for key, value in arguments.items() if value is not None},
            metric_type=each.metric,
            metric_name=each.metric if each.filter == "none" else f"{each.metric}, {each.filter}",
            metric_value=rounded(each.artifact.value),
            metric_args={
                "runtime": runtime,
                **({} if error is None else {"standard_error": rounded(error)}),
            },
        )


def _score(score: TaskScore | None) -> str:
    if score is None:
        return ""
    error = score.standard_error
    return f"{score.value:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _drop(drop: Drop | None) -> str:
    if drop is None:
        return ""
    if drop.low is None or drop.high is None:
        return f"{drop.value:+.4g}"
    return f"{drop.value:+.4g} [{drop.low:+.4g}, {drop.high:+.4g}]"
