"""Let an artifact and its original answer the same tasks, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gemquant import __version__
from gemquant.core.artifact import MANIFEST_FILE, read_manifest
from gemquant.core.progress import Progress
from gemquant.core.recipe import Recipe
from gemquant.errors import Attempt, ProblemCollector, UsageError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.bench.subject import Subject
from gemquant.measure.tasks import harness
from gemquant.measure.tasks.document import ModelRecord, Settings, TasksDocument
from gemquant.measure.tasks.engines.engine import Engine
from gemquant.measure.tasks.published import Figure
from gemquant.measure.tasks.results import Context, task_results

if TYPE_CHECKING:
    from gemquant.measure.tasks.voice import Voice

_ORIGINAL = "the original"

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What was asked for. against: the original; None for what the artifact was made from."""

    artifact: str
    tasks: tuple[str, ...]
    settings: Settings
    against: str | None = None
    with_original: bool = True
    folder: Path | None = None
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Subjects:
    """What answers, nothing of its weights read yet."""

    artifact: Subject
    base_model: str | None
    original: Checkpoint | None


def open_subjects(request: Request) -> Subjects:
    """Open an artifact and its original; every problem of both at once."""
    from gemquant.measure.tasks.opening import require_runtime

    problems = ProblemCollector()
    subject = problems.attempt(lambda: Subject.open(request.artifact))
    problems.attempt(lambda: require_runtime(subject.value))
    checkpoint = problems.attempt(
        lambda: _original(request, subject) if request.with_original else None
    )
    problems.refuse()
    artifact, original = subject.value, checkpoint.value
    base_model = original.provenance.base_model if original is not None else None
    if (artifact.path / MANIFEST_FILE).is_file():
        base_model = read_manifest(artifact.path).base_model or base_model
    return Subjects(artifact, base_model, original)


def _original(request: Request, subject: Attempt[Subject]) -> Checkpoint:
    """The checkpoint that an artifact is compared with; UsageError where nothing says which."""
    if request.against is not None:
        return open_checkpoint(request.against)
    artifact = subject.value
    if not (artifact.path / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{artifact.name}: has no manifest that names what it was made from.",
            hint="Give --against MODEL, or --no-original.",
        )
    manifest = read_manifest(artifact.path)
    ref, lora = manifest.source.ref, Recipe.from_dict(manifest.recipe).lora
    if manifest.source.revision is not None:
        ref = f"{ref.partition('@')[0]}@{manifest.source.revision}"
    return open_checkpoint(ref, lora=lora)


def measure(request: Request, subjects: Subjects, progress: Progress) -> TasksDocument:
    """Run every task on the artifact in its own runtime, then on the original in transformers."""
    from gemquant.measure.tasks import opening

    artifact, checkpoint = subjects.artifact, subjects.original
    voices = {artifact.name: opening.artifact_voice(artifact)}
    if checkpoint is not None:
        voices[_ORIGINAL] = opening.original_voice(checkpoint)
    if request.settings.chat_template:
        for voice in voices.values():
            opening.require_template(voice, artifact.name)
    loaded = harness.load(
        request.tasks,
        request.folder,
        code_allowed=request.settings.task_code,
        progress=progress,
    )
    longest = min(voice.longest for voice in voices.values())
    runs: list[Answers] = []
    settings = request.settings.shortened(longest)
    if loaded.tasks:
        progress.note(f"loading {artifact.name}")
        engine = opening.artifact_engine(artifact, settings)
        settings = settings.shortened(engine.longest)
        record = ModelRecord(
            name=opening.named(artifact.path),
            container=artifact.container,
            base_model=subjects.base_model,
            digest=opening.digest(artifact),
            runtime=engine.runtime,
        )
        runs.append(_answers(record, engine, voices[artifact.name], loaded, settings, progress))
        del engine
        opening.forget()
    if loaded.tasks and checkpoint is not None:
        progress.note(f"loading {checkpoint.ref}")
        engine = opening.original_engine(checkpoint, settings)
        record = ModelRecord(
            name=checkpoint.ref,
            container="checkpoint",
            base_model=checkpoint.provenance.base_model,
            runtime=engine.runtime,
        )
        runs.append(_answers(record, engine, voices[_ORIGINAL], loaded, settings, progress))
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


@dataclass(frozen=True)
class Answers:
    """What a model answered: lm-eval's results, and what is worth saying about them."""

    model: ModelRecord
    results: Mapping[str, Any]
    notes: tuple[str, ...]


def _answers(
    record: ModelRecord,
    engine: Engine,
    voice: Voice,
    loaded: harness.Loaded,
    settings: Settings,
    progress: Progress,
) -> Answers:
    from gemquant.measure.tasks.model import HarnessModel

    model = HarnessModel(engine, voice, settings.max_length, progress)
    progress.note(f"running {record.name} in {record.runtime}")
    results = harness.run(model, loaded, settings)
    notes = []
    if model.windows_cut:
        notes.append(
            f"{record.name}: {model.windows_cut} prompts were longer than {settings.max_length} "
            "tokens and lost their beginning"
        )
    return Answers(record, results, tuple(notes))
