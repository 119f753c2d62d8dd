"""``gemquant awq``: our own AWQ, or with ``--engine autoawq`` AutoAWQ's, for comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gemquant.cli.foreign import ToolSettings, make_or_show, tool_flags, tool_settings
from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.request import Request, read_request
from gemquant.cli.settings import problems_of, setting
from gemquant.convert.external.autoawq_options import ENGINES, AutoAwqOptions
from gemquant.core.options import options_of
from gemquant.core.resources import require_device
from gemquant.errors import GemquantError, ProblemCollector, UsageError

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.convert.external.build import ForeignJob
    from gemquant.core.progress import Progress
    from gemquant.formats.checkpoint import Checkpoint

CONTAINER = "awq-gemm"
TYPED = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
TOOL_PARAMETERS = ("python", "tool_minutes", "tool_memory")


def engine_flags() -> list[click.Parameter]:
    """What ``gemquant awq`` has beyond the flags of every quantizer."""
    return [
        setting(
            "--engine",
            default="gemquant",
            metavar="|".join(ENGINES),
            help="Program that decides the numbers: this one, or AutoAWQ 0.2.9 (Gemma 1 and 2).",
        ),
        *tool_flags(own_python="none: --engine autoawq needs one"),
    ]


class AwqCommand(QuantizerCommand):
    """Runs our own pipeline, or AutoAWQ."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given, problems = ctx.params, problems_of(ctx)
        if given["engine"] not in ENGINES:
            listed = ", ".join(ENGINES)
            problems.append(UsageError(f"--engine {given['engine']}: must be one of {listed}."))
        if given["engine"] != "autoawq":
            problems += _of_the_other(ctx, TOOL_PARAMETERS, "needs --engine autoawq")
            super().invoke(ctx)
            return
        tool = tool_settings(given, problems)
        _require_shared_options(ctx, problems, self.quantizer)
        given["exporter"] = given["exporter"] or CONTAINER
        request = read_request(ctx, AutoAwqOptions)
        make_or_show(request, tool, _prepared, quiet=given["quiet"], as_json=given["as_json"])


def _require_shared_options(
    ctx: click.Context, problems: list[GemquantError], ours: type[Any]
) -> None:
    """Refuse options of our own search that were typed; AutoAWQ has none like them."""
    theirs = {option.name for option in options_of(AutoAwqOptions)}
    foreign = [option.name for option in options_of(ours) if option.name not in theirs]
    problems += _of_the_other(
        ctx, (*foreign, "calib_dtype", "restart"), "AutoAWQ has no such option"
    )
    if ctx.params["exporter"] not in {None, CONTAINER}:
        problems.append(
            UsageError(
                f"--exporter {ctx.params['exporter']}: AutoAWQ writes {CONTAINER} alone.",
                hint="Leave --exporter out.",
            )
        )


def _of_the_other(ctx: click.Context, names: tuple[str, ...], why: str) -> list[GemquantError]:
    return [
        UsageError(f"--{name.replace('_', '-')}: {why}.", hint="Leave it out.")
        for name in names
        if ctx.get_parameter_source(name) in TYPED
    ]


def _prepared(
    request: Request, tool: ToolSettings, progress: Progress
) -> tuple[ForeignJob, Checkpoint, list[TokenWindows]]:
    """Check everything that can be known before the first weight is read."""
    import torch

    from gemquant.cli.preparation import (
        calibration_text,
        chat_template,
        default_output,
        read_evaluation,
    )
    from gemquant.convert.external import autoawq
    from gemquant.convert.external.build import ForeignJob
    from gemquant.convert.plan import linear_weights
    from gemquant.core.artifact import output_problems
    from gemquant.errors import refuse
    from gemquant.formats.checkpoint import open_checkpoint

    torch.set_num_threads(request.threads)
    recipe, options = request.recipe, request.quantizer
    assert isinstance(options, AutoAwqOptions)
    progress.note(f"opening {recipe.model}")
    checkpoint = open_checkpoint(recipe.model, lora=recipe.lora)
    problems, config = ProblemCollector(), checkpoint.config
    named = problems.attempt(lambda: refuse(autoawq.python_problems(tool.python)))
    interpreter = problems.attempt(lambda: (named.value, tool.interpreter(autoawq.PACKAGES))[1])
    problems.attempt(lambda: refuse(autoawq.interpreter_problems(interpreter.value)))
    problems.attempt(lambda: refuse(autoawq.problems(config, linear_weights(checkpoint), options)))
    problems.attempt(lambda: require_device(recipe.device))
    template = problems.attempt(lambda: chat_template(recipe, checkpoint))
    calibration = problems.attempt(lambda: calibration_text(recipe, checkpoint, template.value))
    evaluation = problems.attempt(lambda: read_evaluation(recipe, checkpoint, template.value))
    label = [f"w{options.bits}-g{options.group_size}"]
    out = request.output or Path(default_output(checkpoint.ref, "autoawq", label))
    problems.attempt(lambda: refuse(output_problems(out, force=request.force, needed_bytes=0)))
    problems.refuse()
    job = ForeignJob(
        recipe=dataclasses.replace(recipe, exporter=CONTAINER),
        quantizer="autoawq",
        container=CONTAINER,
        out=out,
        force=request.force,
        dtype=autoawq.DTYPE,
        float_dtype=autoawq.DTYPE,
        calibration=calibration.value,
        build=autoawq.quantizer(
            config,
            options,
            calibration.value,
            interpreter=interpreter.value,
            limits=tool.limits,
            threads=request.threads,
        ),
    )
    return job, checkpoint, list(evaluation.value)
