"""An RKLLM file on a board: prompts continued, logits of windows, through the runtime there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemquant.core.progress import Progress, Silence
from gemquant.errors import GemquantError, UnsupportedError, refuse
from gemquant.rockchip.board.connection import BoardAddress
from gemquant.rockchip.board.events import Event, Rows
from gemquant.rockchip.board.survey import Survey
from gemquant.rockchip.board.workspace import Workspace, workspace
from gemquant.rockchip.programs import PROGRAMS
from gemquant.rockchip.programs.rkllm_structures import LAYOUTS

CONTAINER, SUFFIX = "rkllm", ".rkllm"
PROGRAM = "rkllm_board.py"
FILES = (PROGRAM, "rkllm_runtime.py", "rkllm_structures.py")
MODEL, JOB = "model.rkllm", "job.json"
CONTEXT_MULTIPLE = 32
LOGITS_BYTES = 1 << 28
"""What the runtime may hold of logits on the board: all of one window's at once."""
_OLDEST_PYTHON = (3, 8)


@dataclass(frozen=True)
class BoardRuntime:
    """Which runtime is used. library: its path there. release: what the user says that it is."""

    library: str
    release: str | None = None

    @classmethod
    def choose(cls, told: Survey, library: str | None, release: str | None) -> BoardRuntime:
        """The library that was named, or the first that was found; every problem at once."""
        problems = problems_of(told, release)
        if library is None and not told.libraries:
            problems.append(
                UnsupportedError(
                    "The board has no librkllmrt.so where one is looked for.",
                    hint="Name it with --board-library, or see: gemquant doctor --board ADDRESS",
                )
            )
        refuse(problems)
        return cls(library or told.libraries[0].path, release)


def problems_of(told: Survey, release: str | None) -> list[GemquantError]:
    """What keeps a board from being measured at all."""
    problems: list[GemquantError] = []
    if release is not None and release not in LAYOUTS:
        problems.append(
            UnsupportedError(f"--board-release {release}: known are {', '.join(LAYOUTS)}.")
        )
    if told.system != "Linux aarch64":
        problems.append(
            UnsupportedError(f"The board runs {told.system}; the runtime is for Linux aarch64.")
        )
    if told.python is None or told.python_version < _OLDEST_PYTHON:
        found = ".".join(map(str, told.python_version)) or "none"
        problems.append(
            UnsupportedError(
                f"The board's python3: {found}; 3.8 or newer is needed.",
                hint="On the board: sudo apt install python3",
            )
        )
    return problems


def require_platform(told: Survey, platform: str, name: str) -> None:
    """Refuse a file that is made for another chip."""
    if told.platform is not None and told.platform != platform:
        raise UnsupportedError(
            f"{name} is made for {platform}, and the board has an {told.platform}.",
            hint=f"gemquant rkllm MODEL --target {told.platform}",
        )


def rkllm_file(path: Path) -> Path:
    """The file itself, of an artifact's folder or as it was named."""
    if path.is_file():
        return path
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        raise UnsupportedError(f"{path}: holds {len(found)} {SUFFIX} files, not one.")
    return found[0]


@dataclass(frozen=True)
class RkllmOnBoard:
    """A file that was copied to a board, and what runs it there."""

    place: Workspace
    told: Survey
    runtime: BoardRuntime
    model: str
    sha256: str

    def generate(
        self,
        prompt: Sequence[int],
        *,
        new_tokens: int,
        repetitions: int = 1,
        warm_up_runs: int = 0,
    ) -> Iterator[Event]:
        """Continue a prompt greedily, several times: Started, Loaded, a Ran each, Done."""
        yield from self._run(
            {
                "task": "generate",
                "prompt": list(prompt),
                "new_tokens": new_tokens,
                "repetitions": repetitions,
                "warm_up_runs": warm_up_runs,
                "max_context": context(len(prompt) + new_tokens),
            }
        )

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Event]:
        """Have every token of every window predicted: Started, Loaded, Rows and Windowed, Done."""
        yield from self._run(
            {
                "task": "logits",
                "windows": [list(ids) for ids in windows],
                "max_context": context(max(len(ids) for ids in windows) + 1),
            }
        )

    def _run(self, job: dict[str, Any]) -> Iterator[Event]:
        whole = {
            **job,
            "model": self.model,
            "sha256": self.sha256,
            "library": self.runtime.library,
            "release": self.runtime.release,
            "watch": self.told.watched(),
        }
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / JOB
            file.write_text(json.dumps(whole), encoding="utf-8")
            path = self.place.copy(file, JOB, Silence())
        yield from self.place.run(PROGRAM, [path])


@contextmanager
def on_board(
    board: BoardAddress, told: Survey, runtime: BoardRuntime, file: Path, progress: Progress
) -> Iterator[RkllmOnBoard]:
    """Copy a file to a board for as long as it is needed there."""
    progress.note(f"{file.name}: hashing, and copying to {board.text}")
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    programs = {name: PROGRAMS / name for name in FILES}
    with workspace(board, told, needed_bytes=file.stat().st_size, files=programs) as place:
        model = place.copy(file, MODEL, progress)
        yield RkllmOnBoard(place, told, runtime, model, sha256)


def context(tokens: int) -> int:
    """The context to ask for: a multiple of 32, as the toolkit documents of it."""
    return -(-tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE


def longest_window(vocabulary: int) -> int:
    """Tokens of a window whose logits the board is asked to hold.

    >>> longest_window(262144), longest_window(256000)
    (256, 262)
    """
    return LOGITS_BYTES // (4 * vocabulary)


def rows_of(event: Rows) -> Any:
    """Logits as numpy's float32 (rows, columns); read-only."""
    import numpy as np

    return np.frombuffer(event.content(), dtype="<f4").reshape(event.rows, event.columns)
