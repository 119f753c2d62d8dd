"""Flags of a board, and what is found of it before anything is measured there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.errors import GemquantError, ProblemCollector, UnsupportedError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.core.progress import Progress
    from gemquant.measure.bench.document import Benchmark, Settings
    from gemquant.measure.bench.subject import Subject
    from gemquant.rockchip.bench import BoardSubject
    from gemquant.rockchip.board import BoardAddress, Survey
    from gemquant.rockchip.board.rkllm import BoardRuntime

ADDRESS = "ssh://USER@HOST[:PORT]|adb:SERIAL"
LEFT_TO_THE_BOARD = {
    "runtimes": None,
    "modes": None,
    "device": "cpu",
    "dtype": "auto",
    "threads": None,
}
"""Settings that a board's runtime decides itself, with what they are where they are not given."""


def board_flags() -> list[click.Parameter]:
    """``--board`` and what says more about it."""
    return [
        click.Option(
            ["--board"],
            metavar=ADDRESS,
            help="Run RKLLM files on this board, through its librkllmrt; needs python3 there.",
        ),
        click.Option(
            ["--board-library"],
            metavar="PATH",
            help="The librkllmrt.so there, where it is not found or there are several.",
        ),
        click.Option(
            ["--board-release"],
            metavar="VERSION",
            help="Its release, where it does not say so itself.",
        ),
    ]


@dataclass(frozen=True)
class FoundBoard:
    """A board that answered and can measure."""

    address: BoardAddress
    told: Survey
    runtime: BoardRuntime

    @classmethod
    def ask(cls, given: dict[str, Any], progress: Progress) -> FoundBoard:
        """Look at the board that was named; every problem of it at once."""
        from gemquant.rockchip.board import BoardAddress, survey
        from gemquant.rockchip.board.rkllm import BoardRuntime

        address = BoardAddress.parse(given["board"])
        progress.note(f"asking {address.text}")
        told = survey(address)
        runtime = BoardRuntime.choose(told, given["board_library"], given["board_release"])
        return cls(address, told, runtime)


# ---------------------------------------------------------------- gemquant bench --board


def bench_problems(given: dict[str, Any]) -> list[GemquantError]:
    """Settings that do not go together with ``--board``, or need it."""
    if given["board"] is None:
        return [
            UsageError(f"--{name.replace('_', '-')}: needs --board.")
            for name in ("board_library", "board_release", "tokenizer")
            if given[name] is not None
        ]
    return [
        UsageError(f"--{name} {given[name]}: with --board, the board's runtime decides that.")
        for name, absent in LEFT_TO_THE_BOARD.items()
        if given[name] != absent
    ]


def bench_subjects(given: dict[str, Any]) -> list[Subject]:
    """The files to measure; every problem of them at once."""
    from gemquant.measure.bench.subject import Subject
    from gemquant.rockchip.board.rkllm import CONTAINER

    subjects, problems = [], ProblemCollector()
    for name in dict.fromkeys(given["artifacts"]):
        opened = problems.attempt(partial(Subject.open, name))
        if not opened.succeeded:
            continue
        subject = opened.value
        if subject.container != CONTAINER:
            problems.append(
                UnsupportedError(
                    f"{name}: --board runs RKLLM files, and this is {subject.container}.",
                    hint=f"Without --board: gemquant bench {name}",
                )
            )
        subjects.append(subject)
    refuse(problems)
    return subjects


def bench_on_board(
    given: dict[str, Any], subjects: list[Subject], settings: Settings, progress: Progress
) -> Benchmark:
    """Measure RKLLM files on a board."""
    from gemquant.rockchip import bench as board

    found = FoundBoard.ask(given, progress)
    prompted = [_prompted(each, given, found, settings.prompt_tokens) for each in subjects]
    return board.run(found.address, found.told, found.runtime, prompted, settings, progress)


def _prompted(
    subject: Subject, given: dict[str, Any], found: FoundBoard, tokens: int
) -> BoardSubject:
    from gemquant.core.artifact import MANIFEST_FILE, read_manifest
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.measure.bench.measure import prompt_from
    from gemquant.rockchip.bench import BoardSubject
    from gemquant.rockchip.board.rkllm import require_platform

    model = given["tokenizer"]
    if (Path(subject.path) / MANIFEST_FILE).is_file():
        manifest = read_manifest(subject.path)
        if manifest.conversion is not None:
            require_platform(found.told, manifest.conversion.platform, subject.name)
        model = model or manifest.source.ref
    if model is None:
        raise UsageError(
            f"{subject.name}: has no manifest.json that names its model.",
            hint="Name the model whose tokenizer it has: --tokenizer MODEL",
        )
    checkpoint = open_checkpoint(model)
    bos = checkpoint.config["bos_token_id"]
    return BoardSubject(subject, prompt_from(checkpoint.tokenizer(), bos, tokens))
