"""A temporary folder on a board: copy files, run programs.

In the end running programs are killed and the folder is removed, after any error; if the connection
is lost, the program on the board does both itself.
"""

from __future__ import annotations

import logging
import queue
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.protocols import Progress, Silence
from gemquant.core.resources import human_bytes
from gemquant.errors import OutputError, UnsupportedError, WorkerError
from gemquant.rockchip.board_connection import (
    BoardAddress,
    ask,
    command,
    printable,
    unreachable,
)
from gemquant.rockchip.board_events import MAX_LINE_BYTES, Done, Event, Failed, read_event
from gemquant.rockchip.board_survey import Survey
from gemquant.rockchip.programs.rkllm_board import FOLDER_PREFIX
from gemquant.runtimes.worker_process import SECONDS_TO_END, read_lines, started

logger = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 24
SECONDS_OF_SILENCE = 1800.0
"""Timeout without output. Loading a large file from a slow card takes minutes."""
LINES_HELD = 4
COPYING = "copying to the board (MB)"
_AT_ONCE = 1 << 20
_FOLDER = re.compile(rf"/[A-Za-z0-9/._+-]*/{re.escape(FOLDER_PREFIX)}[A-Za-z0-9]{{6,}}")
_ILLEGAL_INSTRUCTION = 128 + signal.SIGILL
_SSH_FAILED = 255


@dataclass(frozen=True)
class Workspace:
    """A new folder on a board. python: the board's interpreter."""

    board: BoardAddress
    folder: str
    python: str

    def copy(self, file: Path, name: str, progress: Progress) -> str:
        """Copy a file into the folder, compare the size, return the path on the board."""
        path, size = f"{self.folder}/{name}", file.stat().st_size
        if self.board.kind == "adb":
            _push(self.board, file, path)
            arrived = ask(self.board, f"wc -c < {shlex.quote(path)}").strip()
        else:
            arrived = _send(self.board, file, path, progress)
        if arrived != str(size):
            raise WorkerError(f"{self.board.text}: {name} arrived with {arrived} of {size} bytes.")
        return path

    def run(self, program: str, arguments: Sequence[str]) -> Iterator[Event]:
        """Run a Python program of the folder and yield its events.

        WorkerError, with the end of its output, if it fails, ends early, or is silent too long.
        """
        words = [self.python, "-I", "-B", "-u", f"{self.folder}/{program}", *arguments]
        # Not `exec`: the remote shell turns a signal into a status; ssh would not pass it on.
        script = f"cd {shlex.quote(self.folder)} && {shlex.join(words)}; exit $?"
        with started(command(self.board, script), self.board.text) as process:
            yield from self._events(process)

    def _events(self, process: subprocess.Popen[bytes]) -> Iterator[Event]:
        lines = read_lines(process.stdout, longest=MAX_LINE_BYTES, held=LINES_HELD)
        while True:
            try:
                line = lines.get(timeout=SECONDS_OF_SILENCE)
            except queue.Empty:
                raise WorkerError(
                    f"{self.board.text}: no output for {SECONDS_OF_SILENCE:g} seconds."
                ) from None
            if line is None:
                raise _ended_early(self.board, process.wait())
            event = read_event(line)
            if event is None:
                logger.debug("%s: %s", self.board.text, line[:400].decode("utf-8", "replace"))
                continue
            if isinstance(event, Failed):
                raise WorkerError(f"{self.board.text}: {printable(event.error)}.")
            if isinstance(event, Done):
                # Wait: closing stdin would make it remove the folder.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_END)
                yield event
                return
            yield event


@contextmanager
def make_workspace(
    board: BoardAddress, survey: Survey, needed_bytes: int, files: Sequence[Path]
) -> Iterator[Workspace]:
    """Create a folder with enough space and copy small files into it; remove it in the end.

    OutputError if no folder has the space.
    """
    needed = needed_bytes + RESERVE_BYTES
    parent = next((folder for folder, free in survey.spaces if free >= needed), None)
    if parent is None:
        largest = max((free for _, free in survey.spaces), default=0)
        raise OutputError(
            f"{board.text}: {human_bytes(needed)} are needed on the board; no writable folder has "
            f"more than {human_bytes(largest)} free."
        )
    if survey.python is None:
        raise UnsupportedError(
            f"{board.text}: has no python3, which runs the measuring program.",
            hint="On the board: sudo apt install python3",
        )
    folder = ask(board, f"mktemp -d {shlex.quote(parent)}/{FOLDER_PREFIX}XXXXXXXX").strip()
    if not _FOLDER.fullmatch(folder):
        raise WorkerError(f"{board.text}: mktemp printed {folder[:80]!r}.")
    workspace = Workspace(board, folder, survey.python)
    try:
        for file in files:
            workspace.copy(file, file.name, Silence())
        yield workspace
    finally:
        _remove(workspace)


def _remove(workspace: Workspace) -> None:
    """Kill the folder's program and remove the folder; log a warning if that fails."""
    folder = shlex.quote(workspace.folder)
    script = f"""
if p=$(cat {folder}/pid 2>/dev/null) && grep -q {FOLDER_PREFIX} "/proc/$p/cmdline" 2>/dev/null; then
    kill "$p" 2>/dev/null
    for n in 1 2 3 4 5; do kill -0 "$p" 2>/dev/null || break; sleep 1; done
    kill -9 "$p" 2>/dev/null
fi
rm -rf {folder}"""
    try:
        ask(workspace.board, script)
    except WorkerError as error:
        logger.warning(
            "%s may still hold %s; remove it with: rm -rf %s (%s)",
            workspace.board.text,
            workspace.folder,
            workspace.folder,
            error.message,
        )


def _send(board: BoardAddress, file: Path, path: str, progress: Progress) -> str:
    """Send a file through ssh, since boards may lack sftp and scp; return the size received."""
    quoted, sent = shlex.quote(path), 0
    progress.start(COPYING, max(1, file.stat().st_size // 10**6))
    receive = command(board, f"cat > {quoted} && wc -c < {quoted}")
    with (
        tempfile.TemporaryFile() as stderr,
        file.open("rb") as source,
        started(receive, board.text, stderr=stderr) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            while block := source.read(_AT_ONCE):
                process.stdin.write(block)
                progress.advance(COPYING, (sent + len(block)) // 10**6 - sent // 10**6)
                sent += len(block)
            process.stdin.close()
        arrived = process.stdout.read(100).decode("ascii", "replace").strip()
        if process.wait() != 0:
            stderr.seek(0)
            raise unreachable(board, process.returncode, stderr.read())
        return arrived


def _push(board: BoardAddress, file: Path, path: str) -> None:
    arguments = ["adb", "-s", board.destination, "push", str(file.resolve()), path]
    process = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if process.returncode != 0:
        raise unreachable(board, process.returncode, process.stderr or process.stdout)


def _ended_early(board: BoardAddress, status: int) -> WorkerError:
    if status == _ILLEGAL_INSTRUCTION:
        return WorkerError(
            f"{board.text}: the runtime used an instruction that this processor lacks.",
            hint="Reported for release 1.3.0 on the RK3588, not for 1.2.3: "
            "https://github.com/airockchip/rknn-llm/issues/518",
        )
    if status == _SSH_FAILED and board.kind == "ssh":
        return WorkerError(f"{board.text}: the connection was lost.")
    return WorkerError(
        f"{board.text}: the measuring program ended early, with status {status}.",
        hint="Check the memory, and that runtime and toolkit are of the same release.",
    )
