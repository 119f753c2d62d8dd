"""``gemquant rknn-sim``: decoder blocks in rknn-toolkit2's simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import complete_target, defaults_flag, output_flags
from gemquant.cli.foreign import tool_flags, tool_settings
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting
from gemquant.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.rockchip.rknn import Simulation

TOKENS, SAMPLES = 64, 8


class RknnSimCommand(click.Command):
    """Checks everything, writes blocks, has them simulated, prints decibels."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given = ctx.params
        tool = tool_settings(given, problems_of(ctx))

        from gemquant.core.targets.target import load_target
        from gemquant.formats.checkpoint import open_checkpoint
        from gemquant.rockchip import options as rules
        from gemquant.rockchip import rknn

        problems = problems_of(ctx)
        npu = problems.attempt(lambda: rules.npu_of(load_target(given["target"])))
        python = problems.attempt(lambda: rknn.rknn_interpreter(tool.python))
        opened = problems.attempt(lambda: open_checkpoint(_model(given["model"])))
        layers = problems.attempt(
            lambda: rknn.chosen_layers(given["layers"], opened.value.config["num_hidden_layers"])
        )
        text = problems.attempt(lambda: _windows(given, opened.value))
        problems.refuse()
        calibration, compared = text.value
        with reporter(quiet=given["quiet"]) as progress:
            found = rknn.simulate(
                opened.value,
                layers.value,
                platform=npu.value.platform,
                calibration=calibration,
                compared=compared,
                interpreter=python.value,
                limits=tool.limits,
                threads=1,
                progress=progress,
            )
        _print(found, npu.value.platform, as_json=given["as_json"])


def _model(model: str | None) -> str:
    if not model:
        raise UsageError("No model was given.", hint="As in: gemquant rknn-sim google/gemma-2-2b")
    return model


def _windows(given: dict[str, Any], checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Text to calibrate with, and one window of another to be judged by."""
    from gemquant.calibration.windows import calibration_windows, evaluation_windows
    from gemquant.core.recipe import DEFAULT_CALIBRATION

    tokenizer, bos = checkpoint.tokenizer(), checkpoint.config["bos_token_id"]
    (compared,) = evaluation_windows(
        tokenizer,
        slices=("english",),
        windows=1,
        seq_len=given["tokens"],
        seed=0,
        bos=bos,
        chat_template=None,
    )
    calibration = calibration_windows(
        tokenizer,
        source=DEFAULT_CALIBRATION,
        samples=given["samples"],
        seq_len=given["tokens"],
        seed=0,
        bos=bos,
        chat_template=None,
    )
    return calibration.ids, compared.ids


def _print(found: Simulation, platform: str, *, as_json: bool) -> None:
    from gemquant.cli import render
    from gemquant.rockchip.rknn import NOTE, TOOLKIT

    if as_json:
        facts = {"level": "rknn-sim", "platform": platform, "note": NOTE, **found.model_dump()}
        render.print_json(facts)
        return
    listing = render.table("layer", "mask", "float16 output", "update", "int8 output", "update")
    for block in found.blocks:
        ratios = (
            each for pair in (block.float16, block.int8) for each in pair.model_dump().values()
        )
        listing.add_row(str(block.layer), f"{block.mask:g}", *map(_told, ratios))
    render.print_tables(
        f"Level rknn-sim: {TOOLKIT} {found.toolkit}, {platform}. {NOTE}",
        "",
        listing,
        "",
        "Signal to noise against the float32 layer; update: of what the layer adds to its input; "
        "mask: what attention adds to scores that do not count, which int8 has to resolve too.",
    )


def _told(decibels: float | None) -> str:
    return "not finite" if decibels is None else f"{decibels:.1f} dB"


command = RknnSimCommand(
    "rknn-sim",
    params=[
        click.Argument(["model"], required=False, envvar="GEMQUANT_MODEL", metavar="[MODEL]"),
        setting(
            "--target",
            default="rk3588",
            metavar="NAME",
            help="NPU to simulate; see `gemquant targets`.",
            complete=complete_target,
        ),
        setting(
            "--layers",
            metavar="N,N,…",
            instead="the first, the middle and the last",
            help="Decoder layers to simulate.",
        ),
        setting("--tokens", type=int, default=TOKENS, metavar="N", help="Tokens of a window."),
        setting(
            "--samples", type=int, default=SAMPLES, metavar="N", help="Windows to calibrate with."
        ),
        *tool_flags(own_python="none; it must be named"),
        defaults_flag(),
        *output_flags(),
    ],
    help="""Run decoder layers in the simulator of rknn-toolkit2, in float16 and int8.

    A second opinion on int8, not RKLLM: this toolkit quantizes norms and softmax too. Layers are
    written as ONNX files, each is calibrated and simulated under the interpreter of --python, and
    compared with itself in float32. Nothing is kept.""",
    epilog="""\b
Examples:
  gemquant rknn-sim google/gemma-2-2b --python ./rknn-venv/bin/python
  gemquant rknn-sim ./my-gemma --layers 0,1 --python ./rknn-venv/bin/python --json""",
)
