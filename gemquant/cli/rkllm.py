"""``gemquant rkllm``: files for Rockchip's NPUs, converted by the vendor's toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gemquant.cli.external import tool_flags, tool_settings
from gemquant.cli.flags import model_argument
from gemquant.cli.progress import reporter
from gemquant.cli.quantize import MODEL
from gemquant.cli.quantizer_options import common_flags, quantizer_flags, read_request
from gemquant.cli.settings import problems_of, setting
from gemquant.rockchip.options import AUTO, RkllmOptions

if TYPE_CHECKING:
    from gemquant.rockchip.prepare import PreparedRkllm
    from gemquant.rockchip.rkllm import Preparation, RkllmJob

NOT_SHARED = {
    "exporter",
    "calib_dtype",
    "eval_windows",
    "eval_slices",
    "no_eval",
    "device",
    "compute_dtype",
    "former_compute_dtype",
    "python",
}
"""Shared flags that have no meaning for the toolkit."""


class RkllmCommand(click.Command):
    """Checks everything, converts, and prints the artifact."""

    quantizer = RkllmOptions

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        params = ctx.params
        tool = tool_settings(params, problems_of(ctx))
        shared = read_request(ctx, RkllmOptions)
        as_json = params["as_json"]
        with reporter(quiet=params["quiet"]) as progress:
            progress.start(f"opening {shared.recipe.model}", 0)

            from gemquant.cli import render
            from gemquant.rockchip import rkllm
            from gemquant.rockchip.prepare import RkllmRequest, prepare

            request = RkllmRequest(
                recipe=shared.recipe,
                options=shared.quantizers[0],
                target=shared.target,
                output=shared.output,
                threads=shared.threads,
                force=shared.force,
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
        f"To convert, on x86-64 Linux with {toolkit} (Python {', '.join(release.python)}):",
        f"  PYTHON {folder}/convert.py {folder}/job.json",
    )


def _print_plan(prepared: PreparedRkllm, *, as_json: bool) -> None:
    """Print the expected file, the space and memory needed, and the toolkit's calls."""
    from gemquant.cli import render
    from gemquant.convert.candidates import weight_count
    from gemquant.core.resources import human_bytes
    from gemquant.rockchip.artifact import size_range
    from gemquant.rockchip.rkllm import needed_bytes, worker_job

    job, checkpoint = prepared.job, prepared.checkpoint
    conversion = job.conversion
    low, high = size_range(conversion, checkpoint.config)
    per_weight = conversion.toolkit.conversion.bytes_per_weight
    memory = int(per_weight * weight_count(checkpoint.config))
    toolkit = f"{conversion.toolkit.name} {conversion.release.version}"
    document = worker_job(job, checkpoint)
    if as_json:
        render.print_json(
            {
                "path": str(job.out),
                "file": job.file,
                "file_bytes_expected": [low, high],
                "toolkit": toolkit,
                "needed_bytes": needed_bytes(job, checkpoint),
                "conversion_memory_bytes_estimate": memory,
                "job": document,
            }
        )
        return
    listing = render.table("", "")
    listing.show_header = False
    listing.add_row("file", f"{job.out}/{job.file}")
    listing.add_row("size", f"{human_bytes(low)} to {human_bytes(high)} expected")
    listing.add_row("toolkit", toolkit)
    listing.add_row("runtime", f"librkllmrt {conversion.release.version}")
    listing.add_row("driver", f"{conversion.release.driver} or newer")
    listing.add_row("memory", f"about {human_bytes(memory)}, an estimate")
    for call in document["calls"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in call["arguments"].items())
        listing.add_row(call["function"], arguments)
    render.print_tables(listing, "", "Nothing was written (--dry-run).")


command = RkllmCommand(
    "rkllm",
    params=[
        model_argument(),
        *quantizer_flags(RkllmOptions),
        setting(
            "--toolkit",
            default=AUTO,
            metavar="PYTHON|auto",
            help="Python of the environment with rkllm-toolkit; auto searches for one.",
        ),
        click.Option(
            ["--prepare-only"],
            is_flag=True,
            help="Write the toolkit's input and the program that calls it; convert nothing.",
        ),
        setting(
            "--toolkit-version",
            metavar="X.Y.Z",
            instead="that of --toolkit, or with --prepare-only the newest that converts this",
            help="Release to prepare for; with a toolkit, the one that it must have.",
        ),
        *(flag for flag in tool_flags(default_python="") if flag.name not in NOT_SHARED),
        *(flag for flag in common_flags(RkllmOptions) if flag.name not in NOT_SHARED),
    ],
    help="""RKLLM files for Rockchip's NPUs, converted by the vendor's toolkit.

    The toolkit runs under a separate interpreter (--toolkit), reads a folder that gemquant writes
    for it, and quantizes. --prepare-only needs no toolkit: it leaves folder, calibration prompts
    and job to be converted elsewhere.""",
    epilog=MODEL
    + """\b
Examples:
  gemquant rkllm google/gemma-2-2b-it --toolkit ./rkllm-venv/bin/python
  gemquant rkllm google/gemma-2-9b-it --lora ./my-adapter --quantized-dtype w8a8_g128
  gemquant rkllm google/gemma-3-1b-it --prepare-only -o gemma-for-rkllm
  gemquant rkllm google/gemma-2-2b-it --gptq --quantized-dtype w8a8_g256 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --simulate 2
  gemquant rkllm google/gemma-2-2b-it --no-smooth --emulate 0 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --target rk3576 --hybrid-rate 0.25 --dry-run""",
)
