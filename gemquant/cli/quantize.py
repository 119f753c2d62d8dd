"""``gemquant awq MODEL`` and its like: one command per quantizer, made from its fields."""

from __future__ import annotations

import inspect
from typing import Any

import click
from click.core import ParameterSource

from gemquant.cli.flags import model_argument
from gemquant.cli.progress import reporter
from gemquant.cli.quantizer_flags import common_flags, current_flags, quantizer_flags
from gemquant.cli.request import read_request
from gemquant.convert.plugins import quantizer_type
from gemquant.errors import UsageError


def quantizer_command(name: str) -> click.Command:
    """Make the command of a quantizer; its class is imported, torch is not."""
    quantizer = quantizer_type(name)
    command, more = _command(name)
    return command(
        name,
        quantizer=quantizer,
        params=[
            model_argument(),
            *quantizer_flags(quantizer),
            *more,
            restart_flag(),
            *common_flags(quantizer),
        ],
        help=help_of(quantizer),
        epilog=MODEL + getattr(quantizer, "examples", EXAMPLES).replace("NAME", name),
    )


MODEL = """\b
MODEL is a folder, a Hub id with optional @REVISION, a GGUF file, or sample:gemma-3-270m.

"""
EXAMPLES = """\b
Examples:
  gemquant NAME sample:gemma-3-270m
  gemquant NAME google/gemma-2-2b --target cuda -o gemma-2-2b-NAME
  gemquant NAME ./my-gemma --lora ./my-adapter --calib my-text.jsonl
  gemquant NAME google/gemma-3-1b-it --dry-run
"""


def help_of(quantizer: type[Any]) -> str:
    """Turn a docstring into help text: lines are kept as they are written."""
    first, *rest = inspect.cleandoc(quantizer.__doc__ or "").split("\n\n")
    return "\n\n".join([first, *(f"\b\n{paragraph}" for paragraph in rest)])


def _command(name: str) -> tuple[type[QuantizerCommand], list[click.Parameter]]:
    """The class of a command, and flags beyond those of every quantizer: awq has two engines."""
    if name == "gguf":
        return QuantizerCommand, [from_flag()]
    if name != "awq":
        return QuantizerCommand, []
    from gemquant.cli.autoawq import AwqCommand, engine_flags

    return AwqCommand, engine_flags()


def restart_flag() -> click.Parameter:
    """``--restart``: forget what an interrupted run of the same command has kept."""
    return click.Option(
        ["--restart"],
        is_flag=True,
        help="Start again; otherwise a run goes on where the same one was interrupted.",
    )


def from_flag() -> click.Parameter:
    """``--from``: the file that requantizing starts from, where MODEL is not given."""
    return click.Option(
        ["--from", "source"],
        metavar="FILE.gguf",
        help="GGUF file to start from; the same as giving it as MODEL.",
    )


def take_source(ctx: click.Context) -> None:
    """Let ``--from`` stand for MODEL; UsageError where both are on the command line."""
    source = ctx.params.pop("source", None)
    if source is None:
        return
    if ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE and ctx.params["model"]:
        raise UsageError(
            f"--from {source}: there is a MODEL too, {ctx.params['model']}.",
            hint="Give one of them.",
        )
    ctx.params["model"] = source


class QuantizerCommand(click.Command):
    """Checks everything, then runs the pipeline and prints the certificate."""

    def __init__(self, name: str, *, quantizer: type[Any], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.quantizer = quantizer

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept former spellings of flags."""
        return super().parse_args(ctx, current_flags(self.quantizer, args))

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        as_json = ctx.params["as_json"]
        take_source(ctx)
        request = read_request(ctx, self.quantizer)

        from gemquant.cli import plan_tables, render
        from gemquant.cli.preparation import prepare

        with reporter(quiet=ctx.params["quiet"]) as progress:
            prepared = prepare(request, progress)
            made = None
            if request.dry_run:
                prepared.tell_of_interrupted(progress)
            else:
                made = prepared.run(progress)
        if made is None:
            plan_tables.plans(prepared.plans, as_json=as_json)
        else:
            render.artifacts(made, as_json=as_json)
