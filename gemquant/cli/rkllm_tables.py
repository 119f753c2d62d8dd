"""What ``gemquant rkllm`` prints of a folder that is ready for the toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemquant.cli import render

if TYPE_CHECKING:
    from gemquant.foreign.rkllm import Preparation, RkllmJob


def print_prepared(job: RkllmJob, made: Preparation, *, as_json: bool) -> None:
    """Print where the folder is, what an emulation says of it, and what converts it."""
    release, folder = job.conversion.release, job.out
    toolkit = f"{job.conversion.toolkit.name} {release.version}"
    folds = None if made.smoothing is None else len(made.smoothing.folds)
    if as_json:
        document: dict[str, Any] = {
            "path": str(folder),
            "toolkit": toolkit,
            "file": job.file,
            "smoothing": None if made.smoothing is None else made.smoothing.model_dump(mode="json"),
            "certificates": [each.model_dump(mode="json") for each in made.certificates],
        }
        render.print_json(document)
        return
    beside = ", calibration.json and job.json" if job.prompts else " and job.json"
    smoothed = "" if folds is None else f"; {render.counted(folds, 'scale')} folded into the model"
    render.print_tables(
        f"{folder}: model{beside} for {toolkit}{smoothed}; nothing was converted.", ""
    )
    render.print_certificates(made.certificates)
    render.print_tables(
        f"Where that is installed (Python {', '.join(release.python)}, x86-64 Linux):",
        f"  PYTHON {folder}/convert.py {folder}/job.json",
    )
