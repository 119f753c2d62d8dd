"""The command line: parse, call, print. Every command is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib

import click

from gemquant import __version__
from gemquant.convert.plugins import first_line, plugins

COMMANDS = (
    *("bench", "card", "chat", "doctor", "eval", "gate", "llamafile", "imatrix", "onnx", "plan"),
    *("push", "quantizers", "report", "rkllm", "rknn-sim", "serve", "show", "sign", "targets"),
    *("tasks", "verify"),
)
"""Commands that are no quantizers; each is ``command`` in the module of its name."""

WITH_MORE = ("awq", "gguf")
"""Quantizers whose commands have more than the flags of every quantizer, in modules as well."""


class LazyGroup(click.Group):
    """One command per quantizer, and the fixed ones; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, quantizers first."""
        return [*plugins("quantizer"), *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None if there is none of that name."""
        if cmd_name in (*COMMANDS, *WITH_MORE):
            module = _module(cmd_name)
            command = importlib.import_module(module).command
            if not isinstance(command, click.Command):
                raise TypeError(f"{module}.command is not a command")
            return command
        if cmd_name in plugins("quantizer"):
            from gemquant.cli.quantize import QuantizerCommand

            return QuantizerCommand(cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the closest ones where there is none."""
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, known, n=2)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List quantizers and other commands apart."""
        with formatter.section("Quantizers"):
            formatter.write_dl(
                [(each.name, each.summary) for each in plugins("quantizer").values()]
            )
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in COMMANDS])


def _module(name: str) -> str:
    return f"gemquant.cli.{name.replace('-', '_')}"


def _summary(name: str) -> str:
    """The first line of a command's help: the function's docstring, or else ``help=``."""
    module = _module(name)
    return first_line(module, "\ndef command(", '"""') or first_line(module, '\n    help="""')


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  gemquant awq google/gemma-2-2b -o gemma-2-2b-awq
  gemquant awq --help
  gemquant show gemma-2-2b-awq""",
)
@click.version_option(__version__, prog_name="gemquant")
def cli() -> None:
    """Quantize a Gemma checkpoint for a device, and measure what was lost on the way."""
