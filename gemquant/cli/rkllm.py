"""``gemquant rkllm``: files for Rockchip's NPUs, converted by the vendor's toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.external import tool_flags, tool_settings
from gemquant.cli.flags import flag, flags, model_argument, path_flag
from gemquant.cli.quantize import MODEL, next_commands
from gemquant.cli.quantizer_options import (
    OptionsCommand,
    common_flags,
    quantizer_flags,
    read_request,
)
from gemquant.cli.settings import problems_of, setting
from gemquant.core.progress import print_end, reporter
from gemquant.errors import UsageError
from gemquant.rockchip.options import AUTO, RkllmOptions

if TYPE_CHECKING:
    from gemquant.rockchip.prepare import PreparedRkllm
    from gemquant.rockchip.rkllm import Preparation, RkllmJob

NOT_SHARED = {
    "exporter",
    "calib_dtype",
    "eval_windows",
    "eval_seq_len",
    "eval_positions",
    "eval_slices",
    "no_eval",
    "device",
    "compute_dtype",
    "former_compute_dtype",
    "python",
}
"""Shared flags that have no meaning for the toolkit."""


@click.command(
    "rkllm",
    cls=OptionsCommand,
    quantizer=RkllmOptions,
    epilog=MODEL
    + """\b
Examples:
  gemquant rkllm google/gemma-2-2b-it --toolkit ./rkllm-venv/bin/python
  gemquant rkllm google/gemma-2-9b-it --lora ./my-adapter --quantized-dtype w8a8_g128
  gemquant rkllm google/gemma-3-1b-it --prepare-only -o gemma-for-rkllm
  gemquant rkllm gemma-for-rkllm --converted gemma-3-1b-it.rkllm -o gemma-3-1b-it-rkllm
  gemquant rkllm google/gemma-2-2b-it --gptq --quantized-dtype w8a8_g256 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --simulate 2
  gemquant rkllm google/gemma-2-2b-it --no-smooth --emulate 0 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --target rk3576 --hybrid-rate 0.25 --dry-run""",
)
@flags(
    model_argument(),
    *quantizer_flags(RkllmOptions),
    setting(
        "--toolkit",
        default=AUTO,
        metavar="PYTHON|auto",
        help="Python of the environment with rkllm-toolkit; auto searches for one.",
    ),
    flag(
        "--prepare-only",
        "Write the toolkit's input and the program that calls it; convert nothing.",
    ),
    path_flag(
        "--converted",
        "Make an artifact of the file that convert.py made; MODEL is the prepared folder.",
    ),
    setting(
        "--toolkit-version",
        metavar="X.Y.Z",
        instead="that of --toolkit, or with --prepare-only the newest that converts this",
        help="Release to prepare for; with a toolkit, the one that it must have.",
    ),
    *(each for each in tool_flags(default_python="") if each.name not in NOT_SHARED),
    *(each for each in common_flags(RkllmOptions) if each.name not in NOT_SHARED),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """RKLLM files for Rockchip's NPUs, converted by the vendor's toolkit.

    The toolkit runs under a separate interpreter (--toolkit), reads a folder that gemquant writes
    for it, and quantizes. --prepare-only needs no toolkit: it leaves folder, calibration prompts
    and job to be converted elsewhere; --converted takes back the file.
    """
    tool = tool_settings(params, problems_of(ctx))
    problems_of(ctx).extend(
        UsageError(f"--converted and --{name.replace('_', '-')} exclude each other.")
        for name in ("prepare_only", "dry_run")
        if params["converted"] and params[name]
    )
    shared = read_request(ctx, RkllmOptions)
    if not params["converted"]:
        shared.check_place()
    as_json, quiet = params["as_json"], params["quiet"]
    with reporter(quiet=quiet) as progress:
        opening = "sealing" if params["converted"] else "opening"
        progress.start(f"{opening} {shared.recipe.model}", 0)

        from gemquant.cli import render
        from gemquant.rockchip import rkllm
        from gemquant.rockchip.artifact import seal
        from gemquant.rockchip.prepare import RkllmRequest, prepare

        if params["converted"]:
            folder = Path(shared.recipe.model)
            artifact = seal(folder, params["converted"], shared.output, force=shared.force)
        else:
            request = RkllmRequest(
                **shared.common,
                options=shared.quantizers[0],
                prepare_only=params["prepare_only"],
                toolkit=params["toolkit"] or AUTO,
                toolkit_version=params["toolkit_version"],
                memory_bytes=tool.memory_bytes,
            )
            prepared = prepare(request, progress)
            job, checkpoint = prepared.job, prepared.checkpoint
            if shared.dry_run:
                _print_plan(prepared, as_json=as_json)
                return
            if prepared.interpreter is None:
                preparation = rkllm.prepare_only(job, checkpoint, progress)
                _print_prepared(job, preparation, as_json=as_json)
                return
            artifact = rkllm.convert(
                job,
                checkpoint,
                interpreter=prepared.interpreter,
                limits=tool.limits,
                threads=shared.threads,
                progress=progress,
            )
    render.artifact(artifact, as_json=as_json)
    print_end(*next_commands([artifact]), quiet=quiet)


def _print_prepared(job: RkllmJob, preparation: Preparation, *, as_json: bool) -> None:
    """Print the folder, the emulation, and the command that converts."""
    from gemquant.cli import render

    release, folder, smoothing = job.conversion.release, job.out, preparation.smoothing
    toolkit = f"{job.conversion.toolkit.name} {release.version}"
    if as_json:
        render.print_json(
            {
                "path": str(folder),
                "toolkit": toolkit,
                "file": job.file,
                "smoothing": None if smoothing is None else smoothing.model_dump(mode="json"),
                "certificates": [each.model_dump(mode="json") for each in preparation.certificates],
            }
        )
        return
    files = "model, calibration.json and job.json" if job.prompts else "model and job.json"
    scales = (
        "" if smoothing is None else f"; {render.counted(len(smoothing.folds), 'scale')} folded"
    )
    render.print_tables(f"{folder}: {files} for {toolkit}{scales}; nothing was converted.", "")
    render.print_certificates(preparation.certificates)
    render.print_tables(
        f"Next, on x86-64 Linux with {toolkit} (Python {', '.join(release.python)}):",
        f"  PYTHON {folder}/convert.py",
        "then here, with the file that it makes:",
        f"  gemquant rkllm {folder} --converted {folder}/{job.file} -o ARTIFACT",
    )


def _print_plan(prepared: PreparedRkllm, *, as_json: bool) -> None:
    """Print the expected file, the space and memory needed, and the toolkit's calls."""
    from gemquant.cli import render
    from gemquant.convert.candidates import weight_count
    from gemquant.convert.duration import prepared_so_far
    from gemquant.core.resources import human_bytes, human_seconds
    from gemquant.rockchip.artifact import size_range
    from gemquant.rockchip.rkllm import converting, needed_bytes, preparing, worker_job

    job, checkpoint = prepared.job, prepared.checkpoint
    conversion = job.conversion
    low, high = size_range(conversion, checkpoint.config)
    per_weight = conversion.toolkit.conversion.bytes_per_weight
    weights = weight_count(checkpoint.config)
    memory = int(per_weight * weights)
    toolkit = f"{conversion.toolkit.name} {conversion.release.version}"
    document = worker_job(job, checkpoint)
    seconds = prepared_so_far().joined(preparing(job, checkpoint))
    if prepared.interpreter is not None:
        seconds = seconds.joined(converting(job, checkpoint))
    if as_json:
        render.print_json(
            {
                "path": str(job.out),
                "file": job.file,
                "file_bytes_expected": [low, high],
                "toolkit": toolkit,
                "needed_bytes": needed_bytes(job, checkpoint),
                "conversion_memory_bytes_estimate": memory,
                "seconds_estimate": seconds.document(),
                "job": document,
            }
        )
        return
    listing = render.fact_table()
    listing.add_row("file", f"{job.out}/{job.file}")
    listing.add_row("size", f"{human_bytes(low)} to {human_bytes(high)} expected")
    listing.add_row("toolkit", toolkit)
    listing.add_row("runtime", f"librkllmrt {conversion.release.version}")
    listing.add_row("driver", f"{conversion.release.driver} or newer")
    effort = f"about {human_bytes(memory)} of memory"
    seconds_there = converting(job, checkpoint).seconds
    listing.add_row("converting", f"{effort}, {human_seconds(seconds_there)}; an estimate")
    listing.add_row("time", str(seconds))
    for call in document["calls"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
        listing.add_row(call["function"], arguments)
    render.print_tables(listing, "", "Nothing was written (--dry-run).")
