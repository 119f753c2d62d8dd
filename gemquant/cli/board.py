"""Flags of a board, shared by ``bench --board`` and ``eval --board``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from gemquant.errors import GemquantError, UsageError

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact
    from gemquant.core.protocols import Progress
    from gemquant.measure.bench.document import Benchmark, Settings
    from gemquant.measure.bench.subject import Subject
    from gemquant.rockchip.board_rkllm import Board

ADDRESS = "ssh://USER@HOST[:PORT]|adb:SERIAL"
DECIDED_BY_BOARD = {
    "runtimes": None,
    "modes": None,
    "device": "cpu",
    "dtype": "auto",
    "threads": None,
}
"""Settings that the board's runtime decides itself, with their defaults."""
FLAGS = {"dtype": "compute-dtype"}


def board_flags() -> list[click.Parameter]:
    """``--board`` and its details."""
    return [
        click.Option(
            ["--board"],
            metavar=ADDRESS,
            help="Run RKLLM files on this board, through its librkllmrt; needs python3 there.",
        ),
        click.Option(
            ["--board-library"],
            metavar="PATH",
            help="The board's librkllmrt.so, if it is not found or there are several.",
        ),
        click.Option(
            ["--board-release"],
            metavar="VERSION",
            help="Release of the library, if it does not report one.",
        ),
    ]


def connect(params: Mapping[str, Any], progress: Progress) -> Board:
    """Survey the board that the flags name; raise all its problems together."""
    from gemquant.rockchip.board_rkllm import Board

    return Board.connect(
        params["board"],
        library=params["board_library"],
        release=params["board_release"],
        progress=progress,
    )


def needs_board(params: Mapping[str, Any], *others: str) -> list[GemquantError]:
    """Flags that have no meaning without ``--board``. others: besides its details."""
    return [
        UsageError(f"--{name.replace('_', '-')}: needs --board.")
        for name in ("board_library", "board_release", *others)
        if params[name] is not None
    ]


# ---------------------------------------------------------------- gemquant bench --board


def bench_problems(params: Mapping[str, Any]) -> list[GemquantError]:
    """Flags that cannot be combined with ``--board``, or need it."""
    if params["board"] is None:
        return needs_board(params, "tokenizer")
    return [
        UsageError(
            f"--{FLAGS.get(name, name)} {params[name]}: "
            "with --board, the board's runtime decides that."
        )
        for name, default in DECIDED_BY_BOARD.items()
        if params[name] != default
    ]


def bench_subjects(params: Mapping[str, Any]) -> list[Subject]:
    """The files to measure."""
    from gemquant.rockchip.bench import open_subjects

    return open_subjects(params["artifacts"])


def bench_on_board(
    params: Mapping[str, Any], subjects: Sequence[Subject], settings: Settings, progress: Progress
) -> Benchmark:
    """Measure RKLLM files on a board."""
    from gemquant.rockchip import bench

    board = connect(params, progress)
    return bench.run(board, subjects, settings, progress, tokenizer=params["tokenizer"])


# ---------------------------------------------------------------- gemquant eval --board


def board_problems(artifacts: Sequence[Artifact], params: Mapping[str, Any]) -> list[GemquantError]:
    """Artifacts and flags that cannot be combined with ``--board``, or need it."""
    from gemquant.rockchip.board_rkllm import container_problems

    problems = [*container_problems(artifacts, board=params["board"] is not None)]
    if params["board"] is None:
        return [*problems, *needs_board(params)]
    if params["by_layer"]:
        problems.append(UsageError("--by-layer: a board's runtime does not expose layers."))
    if params["precision"] is not None:
        problems.append(UsageError("--precision: on a board give --eval-windows instead."))
    if not params["native"]:
        problems.append(UsageError("--no-native: with --board there is no other level."))
    return problems
