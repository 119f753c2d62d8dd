"""The importance matrix of a model and a text: computed, and as the last step of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemquant.calibration.trace import Trace, computed_importance
from gemquant.convert.duration import Duration
from gemquant.convert.prepare import OpenedModel, calibration_dtype
from gemquant.convert.run import RunRequest
from gemquant.convert.run_recipe import RunJob
from gemquant.core.artifact.finalize import IMATRIX_ENDING
from gemquant.core.protocols import Progress
from gemquant.core.recipe import Recipe
from gemquant.formats.gguf.imatrix import ImportanceMatrix, write_imatrix
from gemquant.models.skeleton import Skeleton


@dataclass(frozen=True)
class ImatrixStep:
    """A file next to the artifacts of a run; satisfies ``ToolStep``."""

    title: str
    out: Path
    finished: bool
    recipe: Recipe
    threads: int

    @classmethod
    def of(cls, job: RunJob, request: RunRequest, progress: Progress) -> ImatrixStep:
        """Check model and text."""
        opened = OpenedModel(job.recipe, threads=request.threads, progress=progress)
        opened.calibration()
        opened.refuse()
        model = re.split("[@:]", job.recipe.model.rstrip("/").removeprefix("sample:"))[0]
        name = job.name or Path(model).name.removesuffix(".gguf")
        out = request.folder / f"{name}{IMATRIX_ENDING}"
        return cls(job.title, out, out.exists() and not request.force, job.recipe, request.threads)

    def duration(self) -> Duration:
        """Not predicted: little next to a pass that quantizes."""
        return Duration()

    def run(self, shared: Path, progress: Progress) -> None:  # noqa: ARG002 (protocol)
        """Trace the text once more, and write the file."""
        if not self.finished:
            write_imatrix(self.out, compute_imatrix(self.recipe, self.threads, progress))


def compute_imatrix(recipe: Recipe, threads: int, progress: Progress) -> ImportanceMatrix:
    """Open a recipe's model and text, and trace it."""
    model = OpenedModel(recipe, threads=threads, progress=progress)
    calibration = model.calibration()
    model.refuse()
    config: Any = model.checkpoint.config
    dtype = getattr(torch, calibration_dtype(recipe))
    skeleton = Skeleton(config, device=recipe.device, dtype=dtype)
    trace = Trace(model.checkpoint, skeleton, calibration.value, gram=False)
    return computed_importance(trace, calibration.value, config, progress)
