"""``gemquant rknn-sim``: decoder blocks in rknn-toolkit2's simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.external import tool_flags, tool_settings
from gemquant.cli.flags import complete_target, defaults_flag, flags, model_argument, output_flags
from gemquant.cli.settings import problems_of, setting
from gemquant.core.progress import reporter

if TYPE_CHECKING:
    from gemquant.rockchip.rknn import Simulation

TOKENS, SAMPLES = 64, 8


@click.command(
    "rknn-sim",
    epilog="""\b
Examples:
  gemquant rknn-sim google/gemma-2-2b --python ./rknn-venv/bin/python
  gemquant rknn-sim ./my-gemma --layers 0,1 --python ./rknn-venv/bin/python --json""",
)
@flags(
    model_argument(),
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
    setting("--tokens", type=int, default=TOKENS, metavar="N", help="Tokens per window."),
    setting("--samples", type=int, default=SAMPLES, metavar="N", help="Calibration windows."),
    *tool_flags(default_python="none; it is required"),
    defaults_flag(),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Simulate decoder layers in rknn-toolkit2, in float16 and int8.

    A second opinion on int8, not RKLLM: this toolkit quantizes norms and softmax too. Each layer is
    written as an ONNX file, calibrated and simulated under the interpreter of --python, and
    compared with itself in float32. No files remain.
    """
    problems = problems_of(ctx)
    tool = tool_settings(params, problems)

    from gemquant.formats.checkpoint.recognition import check_place

    if params["model"] and not problems.attempt(lambda: check_place(params["model"])).succeeded:
        problems.refuse()

    from gemquant.rockchip.rknn import SimulationRequest, simulate

    names = ("model", "target", "layers", "tokens", "samples")
    request = SimulationRequest(python=tool.python, **{name: params[name] for name in names})
    with reporter(quiet=params["quiet"]) as progress:
        simulation = simulate(request, problems, tool.limits, progress)
    _print(simulation, request.target, as_json=params["as_json"])


def _print(simulation: Simulation, platform: str, *, as_json: bool) -> None:
    from gemquant.cli import render
    from gemquant.rockchip.rknn import NOTE, TOOLKIT

    if as_json:
        render.print_json({"platform": platform, "note": NOTE, **simulation.model_dump()})
        return
    listing = render.table("layer", "mask", "float16 output", "update", "int8 output", "update")
    for block in simulation.blocks:
        ratios = (
            ratio for pair in (block.float16, block.int8) for ratio in pair.model_dump().values()
        )
        listing.add_row(str(block.layer), f"{block.mask:g}", *map(_decibels, ratios))
    render.print_tables(
        f"{TOOLKIT} {simulation.toolkit}, {platform}. {NOTE}",
        "",
        listing,
        "",
        "Signal to noise, compared with the layer in float32. Update: of what the layer adds to "
        "its input. Mask: added to masked attention scores; int8 has to resolve it too.",
    )


def _decibels(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1f} dB"
