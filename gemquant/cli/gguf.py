"""``gemquant gguf``: the quantizer's command, and ``--from`` to requantize a file."""

from __future__ import annotations

import click
from click.core import ParameterSource

from gemquant.cli.quantize import QuantizerCommand
from gemquant.errors import UsageError


class GgufCommand(QuantizerCommand):
    """The command of a quantizer whose model may be named with ``--from``."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; UsageError where a model is named twice on the command line."""
        source = ctx.params.pop("source", None)
        if source is not None:
            typed = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
            if typed and ctx.params["model"]:
                raise UsageError(
                    f"--from {source}: there is a MODEL too, {ctx.params['model']}.",
                    hint="Give one of them.",
                )
            ctx.params["model"] = source
        super().invoke(ctx)


command = GgufCommand(
    "gguf",
    more=[
        click.Option(
            ["--from", "source"],
            metavar="FILE.gguf",
            help="GGUF file to start from; the same as giving it as MODEL.",
        )
    ],
)
