"""An RKLLM file on a board: continue prompts and compute logits with the board's runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemquant.core.artifact import Artifact
from gemquant.core.protocols import Progress, Silence
from gemquant.core.untrusted import sha256_of
from gemquant.errors import GemquantError, UnsupportedError, UsageError, refuse
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_events import Event, Rows
from gemquant.rockchip.board_survey import Survey, survey
from gemquant.rockchip.board_workspace import Workspace, make_workspace
from gemquant.rockchip.programs import PROGRAMS
from gemquant.rockchip.programs.rkllm_structures import LAYOUTS

CONTAINER, SUFFIX = "rkllm", ".rkllm"
NOT_READABLE = "the RKLLM format is not published, so the weights cannot be read back"
PROGRAM = "rkllm_board.py"
FILES = (PROGRAM, "rkllm_runtime.py", "rkllm_structures.py")
MODEL, JOB = "model.rkllm", "job.json"
CONTEXT_MULTIPLE = 32
LOGITS_BYTES = 1 << 28
"""Memory that the runtime may use for one window's logits on the board."""
OLDEST_PYTHON = (3, 8)


@dataclass(frozen=True)
class Board:
    """A board that answered and can measure. library: path of its runtime.

    release: of the runtime, if the user states it.
    """

    address: BoardAddress
    survey: Survey
    library: str
    release: str | None = None

    @classmethod
    def connect(
        cls, address: str, *, library: str | None, release: str | None, progress: Progress
    ) -> Board:
        """Survey a board; raise all its problems together. library: None for the one found."""
        parsed = BoardAddress.parse(address)
        progress.note(f"connecting to {parsed.text}")
        return cls.surveyed(parsed, survey(parsed), library=library, release=release)

    @classmethod
    def surveyed(
        cls,
        address: BoardAddress,
        survey: Survey,
        *,
        library: str | None = None,
        release: str | None = None,
    ) -> Board:
        """Check a survey; raise all problems together."""
        refuse(_problems(survey, library, release))
        return cls(address, survey, library or survey.libraries[0].path, release)

    def require_platform(self, platform: str, name: str) -> None:
        """Refuse a file for another chip."""
        if self.survey.platform not in {None, platform}:
            raise UnsupportedError(
                f"{name} is for {platform}; the board has an {self.survey.platform}.",
                hint=f"gemquant rkllm MODEL --target {self.survey.platform}",
            )


def _problems(survey: Survey, library: str | None, release: str | None) -> Iterator[GemquantError]:
    if release is not None and release not in LAYOUTS:
        yield UnsupportedError(f"--board-release {release}: known are {', '.join(LAYOUTS)}.")
    if survey.system != "Linux aarch64":
        yield UnsupportedError(f"The board runs {survey.system}; the runtime needs Linux aarch64.")
    if survey.python is None or survey.python_version < OLDEST_PYTHON:
        version = ".".join(map(str, survey.python_version)) or "none"
        yield UnsupportedError(
            f"The board's python3: {version}; 3.8 or newer is needed.",
            hint="On the board: sudo apt install python3",
        )
    if library is None and not survey.libraries:
        yield UnsupportedError(
            "The board has no librkllmrt.so in the usual folders.",
            hint="Use --board-library PATH, or run: gemquant doctor --board ADDRESS",
        )


def model_file(path: Path) -> Path:
    """The RKLLM file of an artifact's folder, or the named file."""
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        raise UnsupportedError(f"{path} holds {len(files)} {SUFFIX} files; it must hold one.")
    return files[0]


@dataclass(frozen=True)
class RkllmOnBoard:
    """A model file on a board, with the runtime that executes it."""

    workspace: Workspace
    board: Board
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
            len(prompt) + new_tokens,
            task="generate",
            prompt=list(prompt),
            new_tokens=new_tokens,
            repetitions=repetitions,
            warm_up_runs=warm_up_runs,
        )

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Event]:
        """Compute logits for every token: Started, Loaded, Rows and Windowed, Done."""
        longest = max(len(ids) for ids in windows)
        yield from self._run(longest + 1, task="logits", windows=[list(ids) for ids in windows])

    def _run(self, tokens: int, **job: Any) -> Iterator[Event]:
        complete = {
            **job,
            # A multiple of 32, as the toolkit documents.
            "max_context": -(-tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE,
            "model": self.model,
            "sha256": self.sha256,
            "library": self.board.library,
            "release": self.board.release,
            "watch": self.board.survey.watched(),
        }
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / JOB
            file.write_text(json.dumps(complete), encoding="utf-8")
            path = self.workspace.copy(file, JOB, Silence())
        yield from self.workspace.run(PROGRAM, [path])


def prepared_problems(paths: Sequence[Path]) -> list[GemquantError]:
    """Folders of ``rkllm --prepare-only``, which are not artifacts yet."""
    return [
        UsageError(
            f"{path}: prepared for a toolkit, not converted yet.",
            hint=f"Its emulation is in {path / 'emulated.json'}; for more windows: "
            "gemquant rkllm MODEL --prepare-only --emulate N",
        )
        for path in paths
        if (path / "job.json").is_file() and (path / "convert.py").is_file()
    ]


def container_problems(artifacts: Sequence[Artifact], *, board: bool) -> Iterator[GemquantError]:
    """RKLLM artifacts without a board, and other artifacts with one."""
    for each in artifacts:
        container = each.manifest.container
        if not board and container == CONTAINER:
            yield UsageError(
                f"{each.path}: {NOT_READABLE}; only a board runs it.",
                hint=f"gemquant eval {each.path} --board ssh://USER@HOST; the emulation of its "
                f"conversion: gemquant show {each.path}",
            )
        if board and container != CONTAINER:
            yield UnsupportedError(
                f"{each.path}: --board runs RKLLM files, and this is {container}.",
                hint=f"Without --board: gemquant eval {each.path}",
            )


@contextmanager
def on_board(board: Board, file: Path, progress: Progress) -> Iterator[RkllmOnBoard]:
    """Copy a file to a board; it is removed when the context ends."""
    progress.note(f"{file.name}: hashing, and copying to {board.address.text}")
    sha256 = sha256_of(file)
    programs, size = [PROGRAMS / name for name in FILES], file.stat().st_size
    with make_workspace(board.address, board.survey, size, programs) as workspace:
        model = workspace.copy(file, MODEL, progress)
        yield RkllmOnBoard(workspace, board, model, sha256)


def longest_window(vocabulary: int) -> int:
    """Largest window, in tokens, whose logits fit the memory limit.

    >>> longest_window(262144), longest_window(256000)
    (256, 262)
    """
    return LOGITS_BYTES // (4 * vocabulary)


def rows_of(event: Rows) -> Any:
    """Logits as a read-only float32 array (rows, columns)."""
    import numpy as np

    return np.frombuffer(event.content(), dtype="<f4").reshape(event.rows, event.columns)
