"""Several artifacts of several models: as few passes over each checkpoint as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from gemquant.convert.duration import Duration
from gemquant.convert.plan import PlannedJob
from gemquant.convert.prepare import ConversionRequest, JobRequest, PreparedConversion, prepare
from gemquant.convert.run_recipe import RunJob
from gemquant.core.artifact import Artifact
from gemquant.core.artifact.manifest import MANIFEST_FILE
from gemquant.core.artifact.staging import make_parents
from gemquant.core.protocols import Progress, QuantizedSpec
from gemquant.core.recipe import Recipe
from gemquant.core.resources import human_bytes, total_memory
from gemquant.core.targets import Target, load_target
from gemquant.errors import Attempt, OutputError, ProblemCollector, UsageError
from gemquant.formats.source_model import model_name
from gemquant.models.architecture import layer_structure
from gemquant.models.structure import EMBEDDING, HEAD


class ToolStep(Protocol):
    """An artifact that another program makes when the passes are over; all checks have passed."""

    @property
    def title(self) -> str:
        """Of the job."""

    @property
    def out(self) -> Path:
        """Its folder."""

    @property
    def finished(self) -> bool:
        """Whether it stands already."""

    def duration(self) -> Duration:
        """How long that will take."""

    def run(self, shared: Path, progress: Progress) -> Artifact | None:
        """Make it; None where no artifact comes of it. shared: a folder for all steps."""


@dataclass(frozen=True)
class RunRequest:
    """Artifacts to make, in whatever passes they need.

    folder: the folder of their folders. target_folders: the user's targets. memory_bytes: what the
        jobs of one pass may hold together. tool: checks a job whose numbers another program
        decides, and returns what makes it.
    """

    jobs: Sequence[RunJob]
    folder: Path
    target_folders: Sequence[Path]
    threads: int
    memory_bytes: int
    tool: Callable[[RunJob, Target, RunRequest, Progress], ToolStep]
    force: bool = False
    restart: bool = False
    copy_to: str | None = None

    def copied(self, made: Sequence[Artifact], progress: Progress) -> Sequence[Artifact]:
        """Copy what was made to the URL ``copy_to``, where there is one; return ``made``.

        OutputError where the URL cannot be written, or holds something else at an artifact's place.
        """
        shelf = (self.copy_to or "").rstrip("/")
        for each in made if shelf else ():
            _copy(each, f"{shelf}/{each.path.relative_to(self.folder).as_posix()}", progress)
        return made


@dataclass(frozen=True)
class JobGroup:
    """Jobs that share a pass where memory allows, or one model's jobs of other programs.

    title: the model and what is made of it. memory_bytes: what they hold at most, 0 if unknown.
    """

    title: str
    jobs: tuple[RunJob, ...]
    memory_bytes: int


@dataclass(frozen=True)
class PlannedRun:
    """Passes and later steps, all checked.

    reasons: why there is more than one pass. groups: of jobs that are not made yet.
    """

    passes: Sequence[PreparedConversion]
    steps: Sequence[ToolStep]
    reasons: Sequence[str]
    groups: Sequence[JobGroup]

    def run(self, progress: Progress) -> list[Artifact]:
        """Make what does not stand yet; each pass is complete or can be resumed."""
        made: list[Artifact] = []
        for number, each in enumerate(self.passes, 1):
            if len(self.passes) > 1 and each.planned:
                model, count = each.checkpoint.ref, len(each.planned)
                progress.note(
                    f"pass {number} of {len(self.passes)}: {model}, "
                    f"{count} artifact{'s' if count > 1 else ''}"
                )
            made += each.run(progress)
        if self.steps:
            with TemporaryDirectory(dir=self._common_folder(), prefix=".run.") as shared:
                for step in self.steps:
                    progress.note(f"{step.title}: {'made already' if step.finished else step.out}")
                    artifact = step.run(Path(shared), progress)
                    made += [artifact] if artifact is not None else []
        return made

    def _common_folder(self) -> Path:
        """Where what the steps share lies, on the disk that has room for it."""
        folder = self.steps[0].out.parent
        make_parents(folder)
        return folder


def plan_run(request: RunRequest, progress: Progress) -> PlannedRun:
    """Check every job of every model before the first weight is read; raise all problems at once.

    Jobs of one model and one text share a pass. A pass is split where its jobs would hold more
    than ``memory_bytes``.
    """
    problems = ProblemCollector()
    if request.copy_to is not None:
        problems.attempt(partial(_file_system, request.copy_to))
    groups: dict[Hashable, list[tuple[RunJob, JobRequest]]] = {}
    checks: list[tuple[RunJob, Attempt[ToolStep]]] = []
    for job in request.jobs:
        load = partial(load_target, job.recipe.target, request.target_folders)
        target = problems.attempt(load)
        if not target.succeeded:
            continue
        if job.tool is not None:
            check = partial(request.tool, job, target.value, request, progress)
            checks.append((job, problems.attempt(check)))
        else:
            out = None if job.name is None else request.folder / job.name
            made = JobRequest(job.recipe, job.quantizer, target.value, out, request.folder)
            groups.setdefault(_shared(job.recipe), []).append((job, made))
    prepared = [
        problems.attempt(
            partial(
                prepare,
                ConversionRequest(
                    [made for _, made in jobs],
                    threads=request.threads,
                    force=request.force,
                    restart=request.restart,
                    only_missing=True,
                ),
                progress,
            )
        )
        for jobs in groups.values()
    ]
    problems.refuse()
    passes: list[PreparedConversion] = []
    reasons: list[str] = []
    for each in prepared:
        parts = list(_that_fit(each.value, request.memory_bytes))
        passes += parts
        if len(parts) > 1:
            reasons.append(
                f"{each.value.checkpoint.ref}: {len(each.value.planned)} artifacts in "
                f"{len(parts)} passes, since one would hold {human_bytes(held_bytes(each.value))} "
                f"and may hold {human_bytes(request.memory_bytes)} (--memory)"
            )
    models = {each.value.checkpoint.ref for each in prepared}
    if len(prepared) > len(models):
        reasons.append("jobs with other texts, windows or adapters have a pass of their own")
    unfinished = [
        _group([job for job, _ in jobs], min(held_bytes(each.value), request.memory_bytes))
        for jobs, each in zip(groups.values(), prepared, strict=True)
        if each.value.planned
    ]
    by_tools: dict[str, list[RunJob]] = {}
    for job, step in checks:
        if not step.value.finished:
            by_tools.setdefault(job.recipe.model, []).append(job)
    unfinished += [_group(jobs, 0) for jobs in by_tools.values()]
    return PlannedRun(passes, [step.value for _, step in checks], reasons, unfinished)


def _group(jobs: Sequence[RunJob], memory_bytes: int) -> JobGroup:
    more = f" and {len(jobs) - 1} more" if jobs[1:] else ""
    title = f"{model_name(jobs[0].recipe.model)}, {jobs[0].title}{more}"
    return JobGroup(title, tuple(jobs), memory_bytes)


def _file_system(url: str) -> tuple[Any, str]:
    """What fsspec opens a URL with, and the path in it; UsageError for one that it cannot."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        hint = "A URL of fsspec: s3://BUCKET/FOLDER, gs://…, file:///…"
        raise UsageError(f"--copy-to {url}: {error}", hint=hint) from None
    return system, path


def _copy(artifact: Artifact, url: str, progress: Progress) -> None:
    """Copy an artifact, its manifest last: a folder that has one is whole."""
    system, place = _file_system(url)
    manifest = artifact.path / MANIFEST_FILE
    there = f"{place}/{MANIFEST_FILE}"
    files = [each for each in sorted(artifact.path.rglob("*")) if each.is_file()]
    try:
        if system.exists(there):
            if system.cat_file(there) == manifest.read_bytes():
                progress.note(f"{url}: copied already")
                return
            system.rm_file(there)
            system.rm(place, recursive=True)
        task = f"copying to {url}"
        progress.start(task, len(files))
        for each in sorted(files, key=manifest.__eq__):
            target = f"{place}/{each.relative_to(artifact.path).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(each), target)
            progress.advance(task)
    except OSError as error:
        hint = f"It is whole at {artifact.path}: run the same command again to copy it."
        raise OutputError(f"{url}: cannot be written: {error}", hint=hint) from None


def default_memory() -> int:
    """What the jobs of one pass may hold if nobody says so: four fifths of the machine's memory."""
    return total_memory() * 4 // 5


def held_bytes(prepared: PreparedConversion) -> int:
    """What a pass holds at most: a layer, its statistics, every stream, every job's tables."""
    if not prepared.planned:
        return 0
    jobs = sum(_held_by(each, prepared) for each in prepared.planned)
    original = prepared.carried_bytes - len(prepared.planned) * prepared.evaluated_bytes
    return _layer_bytes(prepared) + original + jobs


def _held_by(planned: PlannedJob, prepared: PreparedConversion) -> int:
    """What one job adds: its stream, and the codes of its tables for the certificate."""
    if not prepared.evaluation:
        return 0
    specs = [planned.header.layout.get(name) for name in (EMBEDDING, HEAD)]
    tables = [spec for spec in specs if isinstance(spec, QuantizedSpec)]
    # Codes and scales of a table take as much memory as on the disk, within a few percent.
    size = planned.bits_per_weight / 8
    return prepared.evaluated_bytes + round(sum(size * prod(spec.shape) for spec in tables))


def _layer_bytes(prepared: PreparedConversion) -> int:
    """The largest layer in float32, and a Gram matrix of its widest input twice."""
    config = prepared.checkpoint.config
    layers = [layer_structure(config, n).shapes for n in range(config["num_hidden_layers"])]
    weights = max(sum(map(prod, shapes.values())) for shapes in layers)
    widest = max(shape[-1] for shapes in layers for shape in shapes.values() if len(shape) > 1)
    gram = 2 * widest * widest if prepared.calibration is not None else 0
    return 4 * (weights + gram)


def _that_fit(prepared: PreparedConversion, memory_bytes: int) -> Iterator[PreparedConversion]:
    """The same jobs in as many passes as memory asks for; one job is never divided."""
    if held_bytes(prepared) <= memory_bytes or len(prepared.planned) < 2:
        yield prepared
        return
    per_pass: list[list[PlannedJob]] = [[]]
    base = held_bytes(prepared) - sum(_held_by(each, prepared) for each in prepared.planned)
    held = base
    for each in prepared.planned:
        more = _held_by(each, prepared)
        if per_pass[-1] and held + more > memory_bytes:
            per_pass.append([])
            held = base
        per_pass[-1].append(each)
        held += more
    finished = prepared.finished
    for jobs in per_pass:
        calibrated = any(each.job.quantizer.needs for each in jobs)
        yield PreparedConversion.of(
            jobs,
            prepared.checkpoint,
            prepared.calibration if calibrated else None,
            prepared.evaluation,
            restart=prepared.resume.restart,
            finished=finished,
        )
        finished = ()


def _shared(recipe: Recipe) -> Hashable:
    """All that the jobs of one pass have in common."""
    own = {"quantizer", "options", "target", "exporter"}
    return tuple(getattr(recipe, each.name) for each in fields(recipe) if each.name not in own)
