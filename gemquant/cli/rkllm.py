"""``gemquant rkllm``: a file for Rockchip's NPUs, made by the vendor's toolkit."""

from __future__ import annotations

import click

from gemquant.cli.external import tool_flags, tool_settings
from gemquant.cli.flags import model_argument
from gemquant.cli.progress import reporter
from gemquant.cli.quantize import MODEL, help_of
from gemquant.cli.quantizer_options import common_flags, quantizer_flags, read_request
from gemquant.cli.rkllm_preparation import AUTO, checked
from gemquant.cli.settings import problems_of, setting
from gemquant.rockchip.options import RkllmOptions

NOT_HERE = {
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


class RkllmCommand(click.Command):
    """Checks everything, prepares, converts, and prints what the toolkit was given."""

    quantizer = RkllmOptions

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given = ctx.params
        given |= {"python": None, "no_eval": True}
        tool = tool_settings(given, problems_of(ctx))
        request = read_request(ctx, RkllmOptions)

        from gemquant.cli import render, rkllm_tables
        from gemquant.rockchip import rkllm

        with reporter(quiet=given["quiet"]) as progress:
            progress.note(f"opening {request.recipe.model}")
            prepared = checked(request, tool, given)
            job, checkpoint = prepared.job, prepared.checkpoint
            if request.dry_run:
                rkllm_tables.print_plan(prepared, as_json=given["as_json"])
                return
            if prepared.interpreter is None:
                made_ready = rkllm.prepare_only(job, checkpoint, progress)
                rkllm_tables.print_prepared(job, made_ready, as_json=given["as_json"])
                return
            made = rkllm.convert(
                job,
                checkpoint,
                interpreter=prepared.interpreter,
                limits=tool.limits,
                threads=request.threads,
                progress=progress,
            )
        render.artifact(made, as_json=given["as_json"])


command = RkllmCommand(
    "rkllm",
    params=[
        model_argument(),
        *quantizer_flags(RkllmOptions),
        setting(
            "--toolkit",
            default=AUTO,
            metavar="PYTHON|auto",
            help="Python of the environment that holds rkllm-toolkit; auto looks for one.",
        ),
        click.Option(
            ["--prepare-only"],
            is_flag=True,
            help="Write what the toolkit reads, and the program that calls it; convert nothing.",
        ),
        setting(
            "--toolkit-version",
            metavar="X.Y.Z",
            instead="that of --toolkit, or with --prepare-only the newest that converts this",
            help="Release to prepare for; where a toolkit converts, the one that it must be.",
        ),
        *(flag for flag in tool_flags(default_python="") if flag.name not in NOT_HERE),
        *(flag for flag in common_flags(RkllmOptions) if flag.name not in NOT_HERE),
    ],
    help=help_of(RkllmOptions),
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
