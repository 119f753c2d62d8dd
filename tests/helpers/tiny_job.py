"""Jobs on tiny Gemmas, run through the whole pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemquant.calibration.windows import TokenWindows
from gemquant.convert import pipeline
from gemquant.convert.plan import Job, plan
from gemquant.core.artifact import Artifact
from gemquant.core.protocols import Exporter, Quantizer
from gemquant.core.recipe import Recipe
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_windows import tiny_windows

CALIBRATION = tiny_windows(6, 45, seed=1, name="calibration")
EVALUATION = (tiny_windows(3, 40, seed=2, name="first"), tiny_windows(2, 40, seed=3, name="second"))


def tiny_job(
    checkpoint: Checkpoint,
    quantizer: Quantizer,
    out: Path,
    exporter: Exporter | None = None,
    *,
    text_only: bool = False,
) -> Job:
    """One artifact of a checkpoint, in compressed-tensors unless another container is given."""
    exporter = exporter or CompressedTensors()
    recipe = Recipe(
        model="tiny", quantizer=quantizer.name, exporter=exporter.name, text_only=text_only
    )
    return Job(quantizer, exporter, out, recipe)


def run_tiny(
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    *,
    evaluation: Sequence[TokenWindows] = EVALUATION,
) -> list[Artifact]:
    """Run jobs in one pass."""
    return pipeline.run(
        plan(jobs, checkpoint), checkpoint, calibration=CALIBRATION, evaluation=evaluation
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
