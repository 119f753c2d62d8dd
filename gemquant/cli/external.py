"""What commands share that run another program: its interpreter, its limits, its checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import Size
from gemquant.cli.quantize import next_commands
from gemquant.cli.quantizer_options import read_request
from gemquant.cli.settings import problems_of, setting
from gemquant.convert.external_options import (
    AutoAwqOptions,
    ExternalRequest,
    OnnxOptions,
    ToolSettings,
)
from gemquant.core.progress import print_end, reporter
from gemquant.core.resources import human_bytes, total_memory
from gemquant.errors import ProblemCollector, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gemquant.convert.external import Check, PreparedExternal

TOOL_MINUTES = 600
MEMORY_SHARE = 0.9


def tool_flags(*, default_python: str) -> list[click.Parameter]:
    """``--python`` and limits; ``default_python`` says what holds where none is named."""
    return [
        setting(
            "--python",
            metavar="PATH",
            instead=default_python,
            help="Python of the environment that holds the tool.",
        ),
        setting(
            "--tool-minutes",
            type=int,
            default=TOOL_MINUTES,
            metavar="N",
            help="Stop the tool after this many minutes.",
        ),
        setting(
            "--tool-memory",
            type=Size(),
            metavar="SIZE",
            instead="nine tenths of the machine's",
            help="Stop the tool if it uses more memory than this, such as 16GB.",
        ),
    ]


def tool_settings(params: Mapping[str, Any], problems: ProblemCollector) -> ToolSettings:
    """Read the flags; append what is wrong with them."""
    minutes = params["tool_minutes"] if params["tool_minutes"] is not None else TOOL_MINUTES
    if minutes < 1:
        problems.append(UsageError(f"--tool-minutes {minutes}: must be at least 1."))
    memory = params["tool_memory"] or int(MEMORY_SHARE * total_memory())
    return ToolSettings(params.get("python"), minutes * 60.0, memory)


def run_external(
    ctx: click.Context,
    options: type[AutoAwqOptions | OnnxOptions],
    container: str,
    load_check: Callable[[], Check],
) -> None:
    """Have a program make an artifact and print it; with ``--dry-run`` print what it would take.

    load_check: imports what checks and sets up the program, once the command line is right.
    """
    tool = tool_settings(ctx.params, problems_of(ctx))
    request = read_request(ctx, options, exporter=container)
    request.check_place()

    external = ExternalRequest(
        **request.common,
        options=request.quantizers[0],
        tool=tool,
    )
    quiet = ctx.params["quiet"]
    with reporter(quiet=quiet) as progress:
        progress.start(f"opening {request.recipe.model}", 0)

        from gemquant.cli import render
        from gemquant.convert.external import build, prepare_external

        prepared = prepare_external(external, load_check(), progress)
        if request.dry_run:
            _print_plan(prepared, as_json=ctx.params["as_json"])
            return
        artifact = build(prepared, progress)
    render.artifact(artifact, as_json=ctx.params["as_json"])
    print_end(*next_commands([artifact]), quiet=quiet)


def _print_plan(prepared: PreparedExternal, *, as_json: bool) -> None:
    from gemquant.cli import render
    from gemquant.convert.duration import external_duration, prepared_so_far

    seconds = prepared_so_far().joined(external_duration(prepared))
    recipe, memory = prepared.recipe, prepared.request.tool.memory_bytes
    if as_json:
        render.print_json(
            {
                "path": str(prepared.out),
                "recipe": recipe.to_dict(),
                "container": prepared.tool.container,
                "needed_bytes": prepared.needed_bytes,
                "tool_memory_bytes": memory,
                "seconds_estimate": seconds.document(),
            }
        )
        return
    listing = render.fact_table()
    listing.add_row("model", recipe.model)
    listing.add_row("folder", str(prepared.out))
    listing.add_row("container", f"{prepared.tool.container}, for {recipe.target}")
    space = human_bytes(prepared.needed_bytes)
    listing.add_row("space", f"at most {space}, most of it while the tool runs")
    listing.add_row("memory", f"at most {human_bytes(memory)} for the tool")
    listing.add_row("time", str(seconds))
    render.print_tables(listing, "", "Nothing was written (--dry-run).")
