"""From a checkpoint through a foreign tool to a sealed artifact, or to nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gemquant.calibration.windows import TokenWindows
from gemquant.convert import pipeline
from gemquant.convert.manifest_facts import calibration_record, library_versions, source_record
from gemquant.convert.plan import SMALL_FILES_BYTES, Job, plan
from gemquant.convert.plugins import exporter
from gemquant.core.artifact import (
    Artifact,
    Manifest,
    finalize,
    quantization_record,
    staged,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.progress import Progress
from gemquant.core.protocols import Layout
from gemquant.core.recipe import Recipe
from gemquant.errors import OutputError, WorkerError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.checkpoint.tokenizer_files import with_chat_template
from gemquant.formats.safetensors.plain import PlainSafetensors
from gemquant.measure.quality.measure import compare
from gemquant.measure.quality.native import NativeRuntime
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import choose_template
from gemquant.quantizers.cast import Cast


@dataclass(frozen=True)
class Built:
    """What a tool has written.

    folder, files: where, and the names of all that belongs to the artifact. versions: of the
    libraries that decided its bytes. config: what config.json must hold.
    """

    folder: Path
    files: Sequence[str]
    versions: Mapping[str, str]
    config: Mapping[str, Any]


Build = Callable[[Path, Path, Progress], Built]
"""(plain folder, scratch folder, progress) → what was built in the scratch folder."""


@dataclass(frozen=True)
class ForeignJob:
    """One artifact for another program to make.

    quantizer: what decides the numbers. dtype: what the plain folder stores. float_dtype: what the
    artifact stores unquantized numbers in.
    """

    recipe: Recipe
    quantizer: str
    container: str
    out: Path
    force: bool
    dtype: str
    float_dtype: str
    build: Build
    calibration: TokenWindows | None = None


def plain_job(job: ForeignJob, out: Path) -> Job:
    """The job of writing the plain folder that the tool reads."""
    recipe = Recipe(model=job.recipe.model, quantizer="cast", exporter="safetensors")
    kept = PlainSafetensors(getattr(torch, job.dtype))
    return Job(Cast(job.dtype), kept, out, recipe)


def plain_dtype(checkpoint: Checkpoint) -> str:
    """The narrowest type that holds every tensor without loss: bfloat16 or float32."""
    stored = {checkpoint.stored_dtype(name) for name in checkpoint.names()}
    return "bfloat16" if stored == {torch.bfloat16} else "float32"


def needed_bytes(job: ForeignJob, checkpoint: Checkpoint) -> int:
    """Space for the plain folder and, at most as much again, the artifact."""
    (planned,) = plan([plain_job(job, job.out.with_name(f".{job.out.name}.plain"))], checkpoint)
    return 2 * planned.total_bytes + SMALL_FILES_BYTES


def make(
    job: ForeignJob,
    checkpoint: Checkpoint,
    evaluation: Sequence[TokenWindows],
    progress: Progress,
) -> Artifact:
    """Make the artifact; whatever happens, nothing unfinished stays."""
    needed = needed_bytes(job, checkpoint)
    with staged(job.out, force=job.force, needed_bytes=needed) as folder:
        with TemporaryDirectory(
            dir=folder.parent, prefix=f".{job.out.name}.", suffix=".tool"
        ) as scratch:
            plain = Path(scratch) / "model"
            progress.note("writing the folder that the tool reads")
            pipeline.run([plain_job(job, plain)], checkpoint, calibration=None, evaluation=())
            built = job.build(plain, Path(scratch), progress)
            _take(built, folder)
        _complete(built, folder, checkpoint, job.recipe)
        weights = exporter(job.container).open(folder)
        certificates = _measure(job, checkpoint, folder, evaluation, progress)
        manifest = _manifest(job, checkpoint, built, folder, weights_layout(weights), certificates)
        finalize(folder, manifest, original_card=checkpoint.provenance.card)
    return Artifact.open(job.out)


def weights_layout(weights: object) -> Layout:
    """What each tensor is stored as, which every reader of an artifact knows."""
    layout: Layout = weights.layout  # type: ignore[attr-defined]
    return layout


def _take(built: Built, folder: Path) -> None:
    """Move the tool's files into the artifact: plain files by plain names, and nothing else."""
    for name in built.files:
        path = built.folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise WorkerError(f"the tool names {name!r} as its file, and it is none.")
        os.replace(path, folder / name)  # noqa: PTH105 (both lie on one file system)


def _complete(built: Built, folder: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Write configuration and tokenizer, over what the tool may have written of them."""
    files = checkpoint.tokenizer_files()
    if recipe.chat_template is not None:
        template = choose_template(
            recipe.chat_template,
            checkpoint.chat_template(),
            architecture_of(checkpoint.config).chat_template,
        )
        files = with_chat_template(files, template)
    text = json.dumps(built.config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {**files, "config.json": text.encode()}.items():
        try:
            (folder / name).write_bytes(content)
        except OSError as error:
            raise OutputError(f"{folder / name}: {error.strerror}.") from error


def _measure(
    job: ForeignJob,
    checkpoint: Checkpoint,
    folder: Path,
    evaluation: Sequence[TokenWindows],
    progress: Progress,
) -> tuple[LevelEvaluation, ...]:
    """Level reference from the files read back, level native from the runtime, if it is here."""
    if not evaluation:
        return ()
    device = job.recipe.device
    runtime = NativeRuntime.find(folder, job.container, device=device)
    return compare(
        checkpoint,
        exporter(job.container).open(folder),
        evaluation,
        runtime=runtime,
        seed=job.recipe.seed,
        device=device,
        compute_dtype=getattr(torch, job.recipe.dtype),
        progress=progress,
    )


def _manifest(
    job: ForeignJob,
    checkpoint: Checkpoint,
    built: Built,
    folder: Path,
    layout: Layout,
    certificates: tuple[LevelEvaluation, ...],
) -> Manifest:
    weight_files = [name for name in built.files if not name.endswith((".json", ".jinja"))]
    return Manifest(
        container=job.container,
        architecture=checkpoint.config["model_type"],
        base_model=checkpoint.provenance.base_model,
        license=checkpoint.provenance.license,
        source=source_record(checkpoint),
        recipe=job.recipe.to_dict(),
        quantization=quantization_record(
            job.quantizer,
            layout,
            float_dtype=job.float_dtype,
            file_bytes=sum((folder / name).stat().st_size for name in weight_files),
        ),
        calibration=calibration_record(job.calibration),
        certificates=certificates,
        libraries={
            **library_versions(),
            **{name: found.partition("+")[0] for name, found in sorted(built.versions.items())},
        },
    )
