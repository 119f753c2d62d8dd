"""From a checkpoint through a program of another project to an artifact, or to nothing.

A plain folder goes in; the program runs as a worker; what it wrote is read back, measured and
finalized like every other artifact.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gemquant.calibration.windows import TokenWindows
from gemquant.convert import pipeline
from gemquant.convert.external_options import ExternalRequest
from gemquant.convert.finalize import ArtifactFacts, write_config
from gemquant.convert.plan import SMALL_FILES_BYTES, Job, PlannedJob, plan
from gemquant.convert.plugins import exporter
from gemquant.convert.prepare import OpenedModel, default_output, note_towers, standing
from gemquant.core.artifact import Artifact, GridRecord, output_problems, staged
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.json_document import Record
from gemquant.core.protocols import Progress
from gemquant.core.recipe import Recipe
from gemquant.errors import Attempt, WorkerError, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.formats.source_model import Origin
from gemquant.measure.quality.measure import compare
from gemquant.measure.quality.native import NativeRuntime
from gemquant.quantizers.cast import Cast
from gemquant.runtimes.worker import Interpreter, Tool, run_tool


class ToolResult(Record):
    """What a program answers: its files, and the versions of the libraries that decided them."""

    files: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class ExternalTool:
    """A program that decides the numbers of one artifact, with all that it is given.

    name: of the quantizer in the manifest, and in the default folder's name with ``label``.
    dtype: what the plain folder stores. float_dtype: what the artifact stores unquantized.
    job: what the program reads, but for the folders. config: what config.json must hold.
    calibration: the text that it reads, if any. library_names: as the manifest lists its libraries.
    notes: what the user should know. complete: changes what the program wrote in a folder, before
        it is measured, and returns what was carried over of a grid.
    products_per_weight: as many multiplications of a product of matrices take as long as it takes
        for a weight, and for a token of its text where it reads one; measured.
    """

    name: str
    label: str
    container: str
    worker: Tool
    interpreter: Interpreter
    dtype: str
    float_dtype: str
    job: Mapping[str, Any]
    config: Mapping[str, Any]
    products_per_weight: float
    calibration: TokenWindows | None = None
    notes: Sequence[str] = ()
    complete: Callable[[Path], GridRecord | None] = lambda _folder: None
    library_names: Mapping[str, str] = field(default_factory=dict)


Check = Callable[[ExternalRequest, OpenedModel], Attempt[ExternalTool]]
"""Checks what a program needs and can do, and returns it set up for the model."""


@dataclass(frozen=True)
class PreparedExternal:
    """An artifact for another program to make; all checks have passed.

    plain: the folder that it reads. finished: the artifact, where it stands already.
    """

    request: ExternalRequest
    tool: ExternalTool
    checkpoint: Checkpoint
    evaluation: Sequence[TokenWindows]
    out: Path
    recipe: Recipe
    plain: PlannedJob
    finished: Artifact | None = None

    @property
    def needed_bytes(self) -> int:
        """Space for the plain folder and, at most as much again, the artifact."""
        return 2 * self.plain.total_bytes + SMALL_FILES_BYTES


def prepare_external(
    request: ExternalRequest, check: Check, progress: Progress
) -> PreparedExternal:
    """Check everything that can go wrong before the first weight is read; raise all at once."""
    model = OpenedModel(request.recipe, threads=request.threads, progress=progress)
    tool = check(request, model)
    evaluation = model.evaluation()
    out = model.attempt(
        lambda: (
            request.output
            or request.within
            / default_output(model.checkpoint.ref, tool.value.name, [tool.value.label])
        )
    )
    recipe = model.attempt(
        lambda: dataclasses.replace(request.recipe, exporter=tool.value.container)
    )
    finished = None
    if request.only_missing and not request.force:
        found = model.attempt(lambda: standing(out.value, recipe.value, model.checkpoint))
        finished = found.value if found.succeeded else None
    if finished is None:
        model.attempt(
            lambda: refuse(output_problems(out.value, force=request.force, needed_bytes=0))
        )
    model.refuse()
    reason = exporter(tool.value.container).without_towers
    note_towers({tool.value.container: reason}, model.checkpoint, request.recipe, progress)
    for note in tool.value.notes:
        progress.note(note)
    plain_out = out.value.with_name(f".{out.value.name}.plain")
    (plain,) = plan([_plain_job(request.recipe, tool.value.dtype, plain_out)], model.checkpoint)
    prepared = PreparedExternal(
        request,
        tool.value,
        model.checkpoint,
        evaluation.value,
        out.value,
        recipe.value,
        plain,
        finished,
    )
    if finished is None:
        needed = prepared.needed_bytes
        refuse(output_problems(out.value, force=request.force, needed_bytes=needed))
    return prepared


def build(
    prepared: PreparedExternal, progress: Progress, *, shared: Path | None = None
) -> Artifact:
    """Make the artifact; whatever happens, nothing unfinished stays.

    shared: a folder of the caller's, in which plain folders stay for other tools.
    """
    if prepared.finished is not None:
        return prepared.finished
    out, tool, checkpoint = prepared.out, prepared.tool, prepared.checkpoint
    staging = staged(out, force=prepared.request.force, needed_bytes=prepared.needed_bytes)
    with staging as folder:
        with TemporaryDirectory(
            dir=folder.parent, prefix=f".{out.name}.", suffix=".tool"
        ) as scratch:
            plain = (shared or Path(scratch)) / f"model-{tool.dtype}"
            if not plain.exists():
                progress.start("writing the model that the tool reads", 0)
                job = dataclasses.replace(prepared.plain.job, out=plain)
                pipeline.run(
                    [dataclasses.replace(prepared.plain, job=job)],
                    checkpoint,
                    calibration=None,
                    evaluation=(),
                )
            result = _run(prepared, plain, Path(scratch), progress)
            _take(result, Path(scratch) / "out", folder)
        files = Origin(checkpoint, prepared.recipe.chat_template).tokenizer_files
        write_config(folder, tool.config, files)
        grid = tool.complete(folder)
        weights = exporter(tool.container).open(folder)
        weight_files = [name for name in result.files if not name.endswith((".json", ".jinja"))]
        ArtifactFacts(
            checkpoint=checkpoint,
            recipe=prepared.recipe,
            container=tool.container,
            quantizer=tool.name,
            layout=weights.layout,  # type: ignore[attr-defined]  # which every reader here has
            float_dtype=tool.float_dtype,
            file_bytes=sum((folder / name).stat().st_size for name in weight_files),
            calibration=tool.calibration,
            certificates=_measure(prepared, folder, progress),
            grid=grid,
            libraries={
                tool.library_names.get(name, name): version.partition("+")[0]
                for name, version in sorted(result.versions.items())
            },
        ).finalize(folder)
    return Artifact.open(out)


def plain_dtype(checkpoint: Checkpoint) -> str:
    """The narrowest type that holds every tensor without loss: bfloat16 or float32."""
    stored = {checkpoint.stored_dtype(name) for name in checkpoint.names()}
    return "bfloat16" if stored == {torch.bfloat16} else "float32"


def _plain_job(recipe: Recipe, dtype: str, out: Path) -> Job:
    plain = Recipe(model=recipe.model, quantizer="cast", exporter="safetensors", text_only=True)
    return Job(Cast(dtype), PlainSafetensors(getattr(torch, dtype)), out, plain)


def _run(prepared: PreparedExternal, plain: Path, scratch: Path, progress: Progress) -> ToolResult:
    """Run the program on a plain folder; its files lie in ``out`` in the scratch folder."""
    tool, request = prepared.tool, prepared.request
    job = {**tool.job, "model": str(plain), "out": str(scratch / "out")}
    if tool.calibration is not None:
        windows = scratch / "windows.json"
        windows.write_text(json.dumps(tool.calibration.ids.tolist()), encoding="utf-8")
        job["windows"] = str(windows)
    return run_tool(
        tool.worker,
        job,
        ToolResult,
        interpreter=tool.interpreter,
        limits=request.tool.limits,
        folder=scratch,
        threads=request.threads,
        progress=progress,
    )


def _take(result: ToolResult, source: Path, folder: Path) -> None:
    """Move the program's files into the artifact: plain files by plain names, nothing else."""
    for name in result.files:
        path = source / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise WorkerError(f"the tool names {name!r} as its file, which is not a plain file.")
        os.replace(path, folder / name)  # noqa: PTH105 (both lie on one file system)


def _measure(
    prepared: PreparedExternal, folder: Path, progress: Progress
) -> tuple[LevelEvaluation, ...]:
    """Level reference from the files read back, level native from the runtime if installed."""
    if not prepared.evaluation:
        return ()
    container, device = prepared.tool.container, prepared.recipe.device
    return compare(
        prepared.checkpoint,
        exporter(container).open(folder),
        prepared.evaluation,
        runtime=NativeRuntime.find(folder, container, device=device),
        device=device,
        seed=prepared.recipe.seed,
        compute_dtype=getattr(torch, prepared.recipe.dtype),
        progress=progress,
    )
