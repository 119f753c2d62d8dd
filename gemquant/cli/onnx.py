"""``gemquant onnx``: an ONNX folder for onnxruntime, made by onnxruntime-genai's builder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.external import run_external, tool_flags
from gemquant.cli.flags import flags, model_argument
from gemquant.cli.quantize import MODEL
from gemquant.cli.quantizer_options import OptionsCommand, common_flags, quantizer_flags
from gemquant.cli.settings import setting
from gemquant.convert.external_options import OnnxOptions

if TYPE_CHECKING:
    from gemquant.convert.external import Check

NOT_HERE = {"target", "exporter", "calib", "samples", "calib_dtype"}


@click.command(
    "onnx",
    cls=OptionsCommand,
    quantizer=OnnxOptions,
    epilog=MODEL
    + """\b
Examples:
  gemquant onnx google/gemma-2-2b
  gemquant onnx google/gemma-3-1b-it --bits 8 -o gemma-3-1b-onnx
  gemquant onnx google/gemma-2-2b --bits 16 --target cuda --python ./onnx-venv/bin/python
  gemquant onnx sample:gemma-3-270m --group-size 64 --dry-run""",
)
@flags(
    model_argument(),
    *quantizer_flags(OnnxOptions),
    setting("--target", default="cpu", metavar="cpu|cuda", help="Where onnxruntime will run."),
    *tool_flags(default_python="this Python, with the extra onnx"),
    *(each for each in common_flags(OnnxOptions) if each.name not in NOT_HERE),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """ONNX for onnxruntime, built by onnxruntime-genai's model builder.

    Weights in 4 or 8 bits, rounded to nearest in groups by the builder; 16 bits (bfloat16) for
    CUDA, 32 bits for a CPU. The builder runs in this Python where the extra onnx is installed, or
    in another one (--python), and holds the whole model in memory.
    """
    run_external(ctx, OnnxOptions, "onnx", _load_check)


def _load_check() -> Check:
    from gemquant.convert.onnx import check

    return check
