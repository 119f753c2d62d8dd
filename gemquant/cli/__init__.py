"""The command line: parse, call, print. Every command is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Sequence

import click

from gemquant import __version__
from gemquant.convert.plugins import first_line, plugins
from gemquant.errors import echo

MAKING = ("run", "imatrix", "onnx", "rkllm")
"""Commands that make files, other than the quantizers."""

GROUPS = {
    "Start": ("doctor", "plan", "targets", "quantizers"),
    "Make": MAKING,
    "Measure": ("eval", "bench", "tasks", "report", "gate", "rknn-sim"),
    "Run": ("chat", "serve", "llamafile"),
    "Publish": ("show", "verify", "card", "sign", "push"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
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
        """Find the command; say what was probably meant where there is none."""
        name, *rest = args
        if name == "help":
            if not rest:
                echo(ctx.get_help())
                ctx.exit()
            return super().resolve_command(ctx, [rest[0], "--help"])
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {name!r}.{_meant(name, rest, known)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by what they are for."""
        for group, names in GROUPS.items():
            with formatter.section(group):
                rows = [(name, _summary(name)) for name in names]
                if names is MAKING:
                    rows = [(e.name, e.summary) for e in plugins("quantizer").values()] + rows
                formatter.write_dl(rows)


def _meant(name: str, rest: Sequence[str], known: Sequence[str]) -> str:
    """What may have been meant by a word that is no command."""
    command = next((word for word in rest if word in known), None)
    if command is not None:
        others = [word for word in rest if word != command]
        return f" The command comes first: {shlex.join(['gemquant', command, name, *others])}"
    if name in {"quantize", "quantise", "convert"}:
        words = shlex.join(["gemquant", "awq", *rest])
        return f" Quantizers are commands: {words}. All of them: gemquant quantizers"
    close = difflib.get_close_matches(name, known, n=2)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _module(name: str) -> str:
    return f"gemquant.cli.{name.replace('-', '_')}"


def _summary(name: str) -> str:
    """The first line of a command's docstring."""
    return first_line(_module(name), "\ndef command(", '"""')


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
