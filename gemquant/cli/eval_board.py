"""``gemquant eval --board``: RKLLM files compared with their original on the board itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from gemquant.errors import GemquantError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from gemquant.calibration.windows import TokenWindows
    from gemquant.cli.board import FoundBoard
    from gemquant.core.artifact import Artifact
    from gemquant.core.progress import Progress
    from gemquant.core.recipe import Recipe
    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.measure.quality.measure import Measured
    from gemquant.measure.quality.native import NativeRuntime

CONTAINER = "rkllm"
UNREAD = "an RKLLM file's format is not published: its weights cannot be read back"


def prepared_problems(paths: Sequence[Path]) -> list[GemquantError]:
    """Folders that are ready for the toolkit, and no artifacts yet."""
    return [
        UsageError(
            f"{path}: prepared for a toolkit, and no artifact yet.",
            hint=f"What was emulated of it is in {path / 'emulated.json'}; for more windows: "
            "gemquant rkllm MODEL --prepare-only --emulate N",
        )
        for path in paths
        if (path / "job.json").is_file() and (path / "convert.py").is_file()
    ]


def board_problems(artifacts: Sequence[Artifact], given: dict[str, Any]) -> list[GemquantError]:
    """Artifacts and settings that do not go together with ``--board``, or need it."""
    problems: list[GemquantError] = []
    for each in artifacts:
        container = each.manifest.container
        if given["board"] is None and container == CONTAINER:
            problems.append(
                UsageError(
                    f"{each.path}: {UNREAD}; a board runs it.",
                    hint=f"gemquant eval {each.path} --board ssh://USER@HOST; what was emulated "
                    f"when it was made: gemquant show {each.path}",
                )
            )
        if given["board"] is not None and container != CONTAINER:
            problems.append(
                UnsupportedError(
                    f"{each.path}: --board runs RKLLM files, and this is {container}.",
                    hint=f"Without --board: gemquant eval {each.path}",
                )
            )
    if given["board"] is None:
        problems += [
            UsageError(f"--{name.replace('_', '-')}: needs --board.")
            for name in ("board_library", "board_release")
            if given[name] is not None
        ]
        return problems
    if given["by_layer"]:
        problems.append(UsageError("--by-layer: a board's runtime shows no layers."))
    if not given["native"]:
        problems.append(UsageError("--no-native: with --board there is no other level."))
    return problems


def require_platforms(artifacts: Sequence[Artifact], found: FoundBoard) -> None:
    """Refuse files that are made for another chip than the board's."""
    from gemquant.rockchip.board.rkllm import require_platform

    for each in artifacts:
        if each.manifest.conversion is not None:
            require_platform(found.told, each.manifest.conversion.platform, str(each.path))


def measured_on_board(
    artifacts: Sequence[Artifact],
    found: FoundBoard,
    original: Checkpoint,
    slices: Sequence[TokenWindows],
    recipe: Recipe,
    progress: Progress,
) -> list[Measured]:
    """Have every artifact's predictions made on the board that was found."""
    import torch

    from gemquant.measure.quality.native_only import UnreadSubject, measure_unread
    from gemquant.measure.quality.records import artifact_name

    return measure_unread(
        original,
        [
            UnreadSubject(
                artifact_name(each), partial(_runtime, each, found, original, progress), UNREAD
            )
            for each in artifacts
        ],
        slices,
        device=recipe.device,
        compute_dtype=getattr(torch, recipe.dtype),
        progress=progress,
    )


@contextmanager
def _runtime(
    artifact: Artifact, found: FoundBoard, original: Checkpoint, progress: Progress
) -> Iterator[NativeRuntime]:
    """Copy an artifact to the board, and let it continue a prompt."""
    from gemquant.cli.eval import PROMPT
    from gemquant.measure.quality.native import GENERATED_TOKENS, NativeRuntime
    from gemquant.rockchip.board.rkllm import on_board, rkllm_file
    from gemquant.rockchip.evaluate import RkllmRunner

    tokenizer, bos = original.tokenizer(), original.config["bos_token_id"]
    prompt = [bos, *tokenizer.encode(PROMPT, add_special_tokens=False).ids]
    file = rkllm_file(artifact.path)
    with on_board(found.address, found.told, found.runtime, file, progress) as there:
        runner = RkllmRunner.start(
            there,
            vocabulary=original.config["vocab_size"],
            prompt=prompt,
            new_tokens=GENERATED_TOKENS,
        )
        continued = tokenizer.decode(list(runner.beginning))
        progress.note(f"{runner.software} continues {PROMPT!r} with {continued!r}")
        if runner.not_run is not None:
            yield NativeRuntime(runner.software, None, runner.not_run)
        else:
            yield NativeRuntime(runner.software, runner)
