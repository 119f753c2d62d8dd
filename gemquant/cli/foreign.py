"""What commands that run another program share: its interpreter, its limits, its checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import Size
from gemquant.cli.progress import reporter
from gemquant.cli.settings import setting
from gemquant.core.resources import human_bytes, total_memory
from gemquant.errors import ProblemCollector, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows
    from gemquant.cli.request import Request
    from gemquant.convert.external.build import ForeignJob
    from gemquant.core.progress import Progress
    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.runtimes.worker import Interpreter, Limits

TOOL_MINUTES = 600
MEMORY_SHARE = 0.9


def tool_flags(*, own_python: str) -> list[click.Parameter]:
    """``--python`` and limits; ``own_python`` says what holds where none is named."""
    return [
        setting(
            "--python",
            metavar="PATH",
            instead=own_python,
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


@dataclass(frozen=True)
class ToolSettings:
    """Where and within what a tool runs. python: None for this interpreter."""

    python: str | None
    seconds: float
    memory_bytes: int

    @property
    def limits(self) -> Limits:
        """As the worker takes them."""
        from gemquant.runtimes.worker import Limits

        return Limits(self.seconds, self.memory_bytes)

    def interpreter(self, packages: Sequence[str]) -> Interpreter:
        """Ask the interpreter which versions of these it has."""
        from gemquant.runtimes.worker import Interpreter

        return Interpreter.ask(self.python, packages)


def tool_settings(given: dict[str, Any], problems: ProblemCollector) -> ToolSettings:
    """Read the flags; append what is wrong with them."""
    minutes = given["tool_minutes"] if given["tool_minutes"] is not None else TOOL_MINUTES
    if minutes < 1:
        problems.append(UsageError(f"--tool-minutes {minutes}: must be at least 1."))
    memory = given["tool_memory"] or int(MEMORY_SHARE * total_memory())
    return ToolSettings(given["python"], minutes * 60.0, memory)


Prepare = Callable[
    ["Request", ToolSettings, "Progress"], "tuple[ForeignJob, Checkpoint, list[TokenWindows]]"
]
"""Checks everything that can be known before the first weight is read: job, model, evaluation."""


def make_or_show(
    request: Request, tool: ToolSettings, prepare: Prepare, *, quiet: bool, as_json: bool
) -> None:
    """Have the tool make the artifact and print it; with ``--dry-run`` print what it would take."""
    from gemquant.cli import render
    from gemquant.convert.external.build import make, needed_bytes
    from gemquant.core.artifact import output_problems

    with reporter(quiet=quiet) as progress:
        job, checkpoint, evaluation = prepare(request, tool, progress)
        needed = needed_bytes(job, checkpoint)
        refuse(output_problems(job.out, force=job.force, needed_bytes=needed))
        if request.dry_run:
            _print_plan(job, needed, tool, as_json=as_json)
            return
        made = make(job, checkpoint, evaluation, progress)
    render.artifact(made, as_json=as_json)


def _print_plan(job: ForeignJob, needed: int, tool: ToolSettings, *, as_json: bool) -> None:
    from gemquant.cli import render

    if as_json:
        render.print_json(
            {
                "path": str(job.out),
                "recipe": job.recipe.to_dict(),
                "container": job.container,
                "needed_bytes": needed,
                "tool_memory_bytes": tool.memory_bytes,
            }
        )
        return
    listing = render.table("", "")
    listing.show_header = False
    listing.add_row("model", job.recipe.model)
    listing.add_row("folder", str(job.out))
    listing.add_row("container", f"{job.container}, for {job.recipe.target}")
    listing.add_row("space", f"at most {human_bytes(needed)}, most of it while the tool runs")
    listing.add_row("memory", f"at most {human_bytes(tool.memory_bytes)} for the tool")
    render.print_tables(listing, "", "Nothing was written (--dry-run).")
