"""The command line: parse, call, print. Every command is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import click

from gemquant import __version__
from gemquant.convert.plugins import plugins


@dataclass(frozen=True)
class LazyCommand:
    """A command that lives in its own module as ``command``. summary: its line in the listing."""

    module: str
    summary: str


# Summaries repeat each command's first help line, so that the listing imports nothing; a test
# compares them.
COMMANDS: Mapping[str, LazyCommand] = {
    "bench": LazyCommand(
        "gemquant.cli.bench", "Measure how fast artifacts run, and in how much memory."
    ),
    "card": LazyCommand(
        "gemquant.cli.card",
        "Write an artifact's model card again, with later measurements.",
    ),
    "chat": LazyCommand("gemquant.cli.chat", "Chat with an artifact in the terminal."),
    "doctor": LazyCommand(
        "gemquant.cli.doctor", "Check what is installed and working, and how to install the rest."
    ),
    "eval": LazyCommand(
        "gemquant.cli.eval", "Compare quantized artifacts with the original model."
    ),
    "gate": LazyCommand("gemquant.cli.gate", "Fail if artifacts are worse than their baseline."),
    "llamafile": LazyCommand(
        "gemquant.cli.llamafile", "Pack a GGUF and a llamafile runtime into one executable."
    ),
    "imatrix": LazyCommand(
        "gemquant.cli.imatrix", "Compute an importance matrix (imatrix) for llama.cpp."
    ),
    "onnx": LazyCommand(
        "gemquant.cli.onnx", "ONNX for onnxruntime, built by onnxruntime-genai's model builder."
    ),
    "plan": LazyCommand(
        "gemquant.cli.plan", "Predict size, memory and speed of every scheme that a target takes."
    ),
    "push": LazyCommand(
        "gemquant.cli.push", "Upload an artifact to the Hugging Face Hub, in one commit."
    ),
    "quantizers": LazyCommand("gemquant.cli.quantizers", "List the quantizers and their options."),
    "report": LazyCommand(
        "gemquant.cli.report",
        "Report evaluations and the gate's verdict as Markdown, JUnit XML and HTML.",
    ),
    "rkllm": LazyCommand(
        "gemquant.cli.rkllm",
        "RKLLM files for Rockchip's NPUs, converted by the vendor's toolkit.",
    ),
    "rknn-sim": LazyCommand(
        "gemquant.cli.rknn_sim",
        "Simulate decoder layers in rknn-toolkit2, in float16 and int8.",
    ),
    "serve": LazyCommand("gemquant.cli.serve", "Serve a GGUF behind an OpenAI-compatible API."),
    "show": LazyCommand("gemquant.cli.show", "Print what an artifact is and what it lost."),
    "sign": LazyCommand(
        "gemquant.cli.sign", "Sign an artifact: its manifest and every file in it."
    ),
    "targets": LazyCommand("gemquant.cli.targets", "List the devices, or describe one."),
    "tasks": LazyCommand(
        "gemquant.cli.tasks",
        "Run lm-eval benchmarks on an artifact, in the runtime that executes it.",
    ),
    "verify": LazyCommand("gemquant.cli.verify", "Verify the hashes and structure of artifacts."),
}


WITH_MORE = {"awq": "gemquant.cli.awq", "gguf": "gemquant.cli.gguf"}
"""Quantizers whose commands have more than the flags of every quantizer."""


class LazyGroup(click.Group):
    """One command per quantizer, and the fixed ones; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, quantizers first."""
        return [*plugins("quantizer"), *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None if there is none of that name."""
        module = COMMANDS[cmd_name].module if cmd_name in COMMANDS else WITH_MORE.get(cmd_name)
        if module is not None:
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
        summaries = [(plugin.name, plugin.summary) for plugin in plugins("quantizer").values()]
        _section(formatter, "Quantizers", summaries)
        _section(formatter, "Commands", ((name, c.summary) for name, c in COMMANDS.items()))


def _section(formatter: click.HelpFormatter, title: str, rows: Iterable[tuple[str, str]]) -> None:
    with formatter.section(title):
        formatter.write_dl(list(rows))


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
