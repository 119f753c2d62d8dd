"""``gemquant gguf``: the quantizer's command, in the words of llama.cpp's programs too."""

from __future__ import annotations

import click
from click.core import ParameterSource

from gemquant.cli.flags import complete_type
from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.quantizer_options import renamed_flags
from gemquant.errors import UsageError, echo

LLAMACPP = {
    "--outtype": "--type",
    "--outfile": "--output",
    "--token-embedding-type": "--embedding-type",
    "--output-tensor-type": "--output-type",
}
"""Flags of llama.cpp's converter and quantizer, and ours."""


class GgufCommand(QuantizerCommand):
    """The command of a quantizer whose model may be named with ``--from``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept llama.cpp's names of flags."""
        return super().parse_args(ctx, renamed_flags(args, LLAMACPP, note=False))

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; UsageError where a model is named twice on the command line."""
        params = ctx.params
        source, types = params.pop("source", None), params.pop("types")
        if source is not None:
            typed = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
            if typed and params["model"]:
                raise UsageError(
                    f"--from {source}: there is a MODEL too, {params['model']}.",
                    hint="Give one of them.",
                )
            params["model"] = source
        if files := [name for name in types if name.lower().endswith(".gguf")]:
            raise UsageError(f"{files[0]}: where to write is named with -o.", hint=f"-o {files[0]}")
        if types:
            given = ctx.get_parameter_source("type") is not ParameterSource.DEFAULT
            params["type"] = (*(params["type"] or () if given else ()), *types)
        out = params["output"]
        if out is not None and out.suffix.lower() == ".gguf" and not out.exists():
            params["output"] = out.with_suffix("")
            if not params["quiet"]:
                echo(f"note: an artifact is a folder; the file will be in {out.stem}/.", err=True)
        super().invoke(ctx)


command = GgufCommand(
    "gguf",
    more=[
        click.Argument(["types"], nargs=-1, metavar="[TYPE]...", shell_complete=complete_type),
        click.Option(
            ["--from", "source"],
            metavar="FILE.gguf",
            help="GGUF file to start from; the same as giving it as MODEL.",
        ),
    ],
)
