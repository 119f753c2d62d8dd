"""``gemquant awq``: our own AWQ, or with ``--engine autoawq`` AutoAWQ's, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gemquant.cli.external import run_external, tool_flags
from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.settings import problems_of, setting
from gemquant.convert.external_options import ENGINES, AutoAwqOptions
from gemquant.core.options import options_of
from gemquant.errors import GemquantError, UsageError

if TYPE_CHECKING:
    from gemquant.convert.external import Check

CONTAINER = "awq-gemm"
TYPED = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
TOOL_PARAMETERS = ("python", "tool_minutes", "tool_memory")


class AwqCommand(QuantizerCommand):
    """Runs our own pipeline, or AutoAWQ."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        engine, problems = ctx.params["engine"], problems_of(ctx)
        if engine not in ENGINES:
            problems.append(UsageError(f"--engine {engine}: must be one of {', '.join(ENGINES)}."))
        if engine != "autoawq":
            problems += _typed(ctx, TOOL_PARAMETERS, "needs --engine autoawq")
            super().invoke(ctx)
            return
        shared = {option.name for option in options_of(AutoAwqOptions)}
        others = [o.name for o in options_of(self.quantizer) if o.name not in shared]
        problems += _typed(ctx, [*others, "calib_dtype", "restart"], "AutoAWQ has no such option")
        if ctx.params["exporter"] not in {None, CONTAINER}:
            problems.append(
                UsageError(
                    f"--exporter {ctx.params['exporter']}: AutoAWQ writes {CONTAINER} only.",
                    hint="Leave --exporter out.",
                )
            )
        run_external(ctx, AutoAwqOptions, CONTAINER, _load_check)


def _typed(ctx: click.Context, names: Sequence[str], why: str) -> list[GemquantError]:
    """Options of the other engine that were given explicitly."""
    return [
        UsageError(f"--{name.replace('_', '-')}: {why}.", hint="Leave it out.")
        for name in names
        if ctx.get_parameter_source(name) in TYPED
    ]


def _load_check() -> Check:
    from gemquant.convert.autoawq import check

    return check


command = AwqCommand(
    "awq",
    more=[
        setting(
            "--engine",
            default="gemquant",
            metavar="|".join(ENGINES),
            help="Program that decides the numbers: this one, or AutoAWQ 0.2.9 (Gemma 1 and 2).",
        ),
        *tool_flags(default_python="none: --engine autoawq needs one"),
    ],
)
