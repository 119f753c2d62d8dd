"""What ``gemquant rkllm`` prints of its plan, and of a folder that is ready for the toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemquant.cli import render

if TYPE_CHECKING:
    from gemquant.cli.rkllm_preparation import Prepared
    from gemquant.rockchip.rkllm import Preparation, RkllmJob


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


def print_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Print the file to expect, the space and memory that it takes, and the toolkit's calls."""
    from gemquant.convert.estimate.candidate import weight_count
    from gemquant.core.resources import human_bytes
    from gemquant.rockchip.artifact import size_range
    from gemquant.rockchip.rkllm import needed_bytes, worker_job

    job, config = prepared.job, prepared.checkpoint.config
    conversion = job.conversion
    low, high = size_range(conversion, config)
    rough = conversion.toolkit.conversion
    memory = int(rough.bytes_per_weight * weight_count(config))
    facts = {
        "path": str(job.out),
        "file": job.file,
        "file_bytes_expected": [low, high],
        "toolkit": f"{conversion.toolkit.name} {conversion.release.version}",
        "needed_bytes": needed_bytes(job, prepared.checkpoint),
        "conversion_memory_bytes_estimate": memory,
        "job": worker_job(job, prepared.checkpoint),
    }
    if as_json:
        render.print_json(facts)
        return
    listing = render.table("", "")
    listing.show_header = False
    listing.add_row("file", f"{job.out}/{job.file}")
    listing.add_row("size", f"{human_bytes(low)} to {human_bytes(high)} are to be expected")
    listing.add_row("toolkit", str(facts["toolkit"]))
    listing.add_row("runtime", f"librkllmrt {conversion.release.version}")
    listing.add_row("driver", f"{conversion.release.driver} or newer")
    listing.add_row("memory", f"about {human_bytes(memory)}, an estimate")
    for call in worker_job(job, prepared.checkpoint)["calls"]:
        listing.add_row(
            call["function"], ", ".join(f"{k}={v!r}" for k, v in call["arguments"].items())
        )
    render.print_tables(listing, "", "Nothing was written (--dry-run).")
