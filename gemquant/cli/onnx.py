"""``gemquant onnx``: an ONNX folder for onnxruntime, made by onnxruntime-genai's builder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import model_argument
from gemquant.cli.foreign import ToolSettings, make_or_show, tool_flags, tool_settings
from gemquant.cli.quantize import MODEL, help_of
from gemquant.cli.quantizer_flags import common_flags, quantizer_flags
from gemquant.cli.request import Request, read_request
from gemquant.cli.settings import problems_of, setting
from gemquant.convert.external.onnx_options import OnnxOptions
from gemquant.core.resources import require_device
from gemquant.errors import ProblemCollector

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.convert.external.build import ForeignJob
    from gemquant.core.progress import Progress
    from gemquant.formats.checkpoint import Checkpoint

CONTAINER = "onnx"
NOT_HERE = {"target", "exporter", "calib", "samples", "calib_dtype"}


class OnnxCommand(click.Command):
    """Checks everything, then runs the builder and prints the certificate."""

    quantizer = OnnxOptions

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given = ctx.params
        tool = tool_settings(given, problems_of(ctx))
        given["exporter"] = CONTAINER
        request = read_request(ctx, OnnxOptions)
        make_or_show(request, tool, _prepared, quiet=given["quiet"], as_json=given["as_json"])


def _prepared(
    request: Request, tool: ToolSettings, progress: Progress
) -> tuple[ForeignJob, Checkpoint, list[TokenWindows]]:
    """Check everything that can be known before the first weight is read."""
    import torch

    from gemquant.cli.preparation import (
        chat_template,
        default_output,
        read_evaluation,
    )
    from gemquant.convert.external import onnx
    from gemquant.convert.external.build import ForeignJob, plain_dtype
    from gemquant.convert.plan import linear_weights
    from gemquant.core.artifact import output_problems
    from gemquant.errors import refuse
    from gemquant.formats.checkpoint import open_checkpoint

    torch.set_num_threads(request.threads)
    recipe, options = request.recipe, request.quantizer
    assert isinstance(options, OnnxOptions)
    progress.note(f"opening {recipe.model}")
    checkpoint = open_checkpoint(recipe.model, lora=recipe.lora)
    problems = ProblemCollector()
    interpreter = problems.attempt(lambda: tool.interpreter(onnx.PACKAGES))
    problems.attempt(lambda: refuse(onnx.missing(interpreter.value, tool.python)))
    provider = problems.attempt(lambda: onnx.provider_of(request.target.name))
    problems.attempt(lambda: require_device(recipe.device))
    config, linears = checkpoint.config, linear_weights(checkpoint)
    problems.attempt(lambda: refuse(onnx.problems(config, linears, options, provider.value)))
    template = problems.attempt(lambda: chat_template(recipe, checkpoint))
    evaluation = problems.attempt(lambda: read_evaluation(recipe, checkpoint, template.value))
    labels = [f"w{options.bits}", *([f"g{options.group_size}"] if options.quantized else [])]
    out = request.output or Path(default_output(checkpoint.ref, CONTAINER, labels))
    problems.attempt(lambda: refuse(output_problems(out, force=request.force, needed_bytes=0)))
    problems.refuse()
    job = ForeignJob(
        recipe=dataclasses.replace(recipe, exporter=CONTAINER),
        quantizer="onnx",
        container=CONTAINER,
        out=out,
        force=request.force,
        dtype=plain_dtype(checkpoint),
        float_dtype=onnx.float_dtype(provider.value, options),
        build=onnx.builder(
            config,
            options,
            provider.value,
            interpreter=interpreter.value,
            limits=tool.limits,
            threads=request.threads,
        ),
    )
    return job, checkpoint, list(evaluation.value)


command = OnnxCommand(
    "onnx",
    params=[
        model_argument(),
        *quantizer_flags(OnnxOptions),
        setting("--target", default="cpu", metavar="cpu|cuda", help="Where onnxruntime will run."),
        *tool_flags(own_python="this Python, with the extra onnx"),
        *(flag for flag in common_flags(OnnxOptions) if flag.name not in NOT_HERE),
    ],
    help=help_of(OnnxOptions),
    epilog=MODEL
    + """\b
Examples:
  gemquant onnx google/gemma-2-2b
  gemquant onnx google/gemma-3-1b-it --bits 8 -o gemma-3-1b-onnx
  gemquant onnx google/gemma-2-2b --bits 16 --target cuda --python ./onnx-venv/bin/python
  gemquant onnx sample:gemma-3-270m --group-size 64 --dry-run""",
)
