"""Let an artifact and its original answer the same tasks, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemquant import __version__
from gemquant.core.artifact import MANIFEST_FILE, Manifest, read_manifest
from gemquant.core.artifact.finalize import content_digest
from gemquant.core.protocols import Progress
from gemquant.core.recipe import Recipe
from gemquant.errors import Attempt, ProblemCollector, RuntimeMissingError, UsageError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.bench.subject import Subject
from gemquant.measure.tasks import harness
from gemquant.measure.tasks.document import ModelRecord, Settings, TasksDocument
from gemquant.measure.tasks.published import Figure
from gemquant.measure.tasks.results import Context, task_results
from gemquant.runtimes.runtime import LoadOptions, LogitsRuntime, logits_runtime

if TYPE_CHECKING:
    from gemquant.runtimes.text import TextInterface


@dataclass(frozen=True)
class TasksRequest:
    """What to run. against: the original; None for what the artifact was made from.

    runtime: what executes the artifact; None for its container's own.
    """

    artifact: str
    tasks: tuple[str, ...]
    settings: Settings
    against: str | None = None
    runtime: str | None = None
    with_original: bool = True
    folder: Path | None = None
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Subjects:
    """The models that answer; none of their weights are read yet."""

    artifact: Subject
    base_model: str | None
    original: Checkpoint | None


def open_subjects(request: TasksRequest) -> Subjects:
    """Open an artifact and its original; every problem of both at once."""
    from gemquant.runtimes.text import require_text

    problems = ProblemCollector()
    subject = problems.attempt(lambda: Subject.open(request.artifact))
    problems.attempt(lambda: _require_runtime(subject.value, request.runtime))
    problems.attempt(
        lambda: require_text(request.artifact, subject.value.path, subject.value.container)
    )
    checkpoint = problems.attempt(
        lambda: _original(request, subject) if request.with_original else None
    )
    problems.refuse()
    original, manifest = checkpoint.value, _manifest(subject.value)
    base_model = original.provenance.base_model if original is not None else None
    if manifest is not None:
        base_model = manifest.base_model or base_model
    return Subjects(subject.value, base_model, original)


def _manifest(subject: Subject) -> Manifest | None:
    return read_manifest(subject.path) if (subject.path / MANIFEST_FILE).is_file() else None


def _require_runtime(subject: Subject, name: str | None) -> None:
    runtime = logits_runtime(subject.container, name)
    reason = runtime.unavailable(subject.container)
    if reason is not None:
        raise RuntimeMissingError(
            f"{subject.name} cannot be run in {runtime.name}: {reason}.",
            hint="gemquant doctor lists what is installed, and how to install the rest.",
        )


def _original(request: TasksRequest, subject: Attempt[Subject]) -> Checkpoint:
    """Open the checkpoint to compare with; UsageError if neither request nor manifest names it."""
    if request.against is not None:
        return open_checkpoint(request.against)
    manifest = _manifest(subject.value)
    if manifest is None:
        raise UsageError(
            f"{subject.value.name}: has no manifest that names its original.",
            hint="Give --against MODEL, or --no-original.",
        )
    ref, lora = manifest.source.ref, Recipe.from_dict(manifest.recipe).lora
    if manifest.source.revision is not None:
        ref = f"{ref.partition('@')[0]}@{manifest.source.revision}"
    return open_checkpoint(ref, lora=lora)


def measure(request: TasksRequest, subjects: Subjects, progress: Progress) -> TasksDocument:
    """Run every task on the artifact in its runtime, then on the original in transformers."""
    from gemquant.runtimes.text import TextInterface

    artifact, checkpoint = subjects.artifact, subjects.original
    text = TextInterface.of_artifact(artifact.path, artifact.container)
    texts = [text] if checkpoint is None else [text, TextInterface.of_checkpoint(checkpoint)]
    if request.settings.chat_template and any(each.template is None for each in texts):
        raise UsageError(
            f"--apply-chat-template: {artifact.name} or its original has no chat template.",
            hint="Leave the flag out, or make the artifact with --chat-template.",
        )
    loaded = harness.load(
        request.tasks,
        request.folder,
        code_allowed=request.settings.task_code,
        progress=progress,
    )
    runs: list[_Run] = []
    settings = request.settings.shortened(min(each.max_tokens for each in texts))
    if loaded.tasks:
        progress.start(f"loading {artifact.name}", 0)
        runtime = load_artifact(artifact, settings, request.runtime)
        settings = settings.shortened(runtime.max_window)
        manifest = _manifest(artifact)
        record = ModelRecord(
            name=artifact.path.name or artifact.path.resolve().name,
            container=artifact.container,
            base_model=subjects.base_model,
            digest=None if manifest is None else content_digest(manifest),
            runtime=runtime.software,
        )
        runs.append(_run(record, runtime, text, loaded, settings, progress))
        del runtime
        _free_memory()
    if loaded.tasks and checkpoint is not None:
        progress.start(f"loading {checkpoint.ref}", 0)
        runtime = load_original(checkpoint, settings)
        record = ModelRecord(
            name=checkpoint.ref,
            container="checkpoint",
            base_model=checkpoint.provenance.base_model,
            runtime=runtime.software,
        )
        runs.append(_run(record, runtime, texts[1], loaded, settings, progress))
    return TasksDocument(
        gemquant=__version__,
        lm_eval=harness.version(),
        artifact=runs[0].model if runs else None,
        original=runs[1].model if len(runs) > 1 else None,
        settings=settings,
        tasks=task_results(
            request.tasks,
            loaded,
            [run.results for run in runs],
            Context(subjects.base_model, request.figures, settings),
        ),
        notes=tuple(note for run in runs for note in run.notes),
    )


def load_artifact(subject: Subject, settings: Settings, name: str | None = None) -> LogitsRuntime:
    """Load an artifact, whole, in the runtime of its container, or in the one that is named."""
    options = LoadOptions(settings.device, settings.dtype, batch_size=settings.batch_size)
    return logits_runtime(subject.container, name).load(subject.path, subject.container, options)


def load_original(checkpoint: Checkpoint, settings: Settings) -> LogitsRuntime:
    """Load a checkpoint, whole, in transformers."""
    from gemquant.runtimes.transformers import Transformers

    options = LoadOptions(settings.device, settings.dtype, batch_size=settings.batch_size)
    return Transformers.load_checkpoint(checkpoint, options)


def _free_memory() -> None:
    """Free the memory of a model that nothing refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Run:
    """One model's results: lm-eval's, and what is worth noting about them."""

    model: ModelRecord
    results: Mapping[str, Any]
    notes: tuple[str, ...]


def _run(
    record: ModelRecord,
    runtime: LogitsRuntime,
    text: TextInterface,
    loaded: harness.Loaded,
    settings: Settings,
    progress: Progress,
) -> _Run:
    from gemquant.measure.tasks.model import HarnessModel

    model = HarnessModel(runtime, text, settings.max_length, progress)
    progress.note(f"running {record.name} in {record.runtime}")
    results = harness.run(model, loaded, settings)
    notes = []
    if model.windows_cut:
        notes.append(
            f"{record.name}: {model.windows_cut} prompts were longer than {settings.max_length} "
            "tokens and lost their beginning"
        )
    return _Run(record, results, tuple(notes))
