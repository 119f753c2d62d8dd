"""A folder on a board for as long as it is needed: files copied there, programs run in it.

Whatever happens here, what runs there is killed and the folder removed; where the connection is
lost, the program there does both itself.
"""

from __future__ import annotations

import logging
import queue
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gemquant.core.progress import Progress, Silence
from gemquant.core.resources import human_bytes
from gemquant.errors import OutputError, UnsupportedError, WorkerError
from gemquant.rockchip.board.connection import (
    BoardAddress,
    ask,
    command,
    printable,
    program_missing,
    unreachable,
)
from gemquant.rockchip.board.events import MAX_LINE_BYTES, Done, Event, Failed, read_event
from gemquant.rockchip.board.survey import Survey
from gemquant.rockchip.programs.rkllm_board import FOLDER_PREFIX
from gemquant.runtimes.worker.process import SECONDS_TO_END, Tail, end, read_lines

logger = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 24
SECONDS_OF_SILENCE = 1800.0
"""Loading a large file from a slow card takes minutes; nothing takes half an hour."""
LINES_HELD = 4
COPYING = "copying to the board (MB)"
_AT_ONCE = 1 << 20
_FOLDER = re.compile(rf"/[A-Za-z0-9/._+-]*/{re.escape(FOLDER_PREFIX)}[A-Za-z0-9]{{6,}}")
_ILLEGAL_INSTRUCTION = 128 + signal.SIGILL
_SSH_FAILED = 255


@dataclass(frozen=True)
class Workspace:
    """A fresh folder on a board. python: the interpreter there."""

    board: BoardAddress
    folder: str
    python: str

    def copy(self, file: Path, name: str, progress: Progress) -> str:
        """Copy a file into the folder and return its path there; its size is compared."""
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
        """Run a Python program of the folder; yield what it says, until it is done.

        WorkerError, with the end of what it printed, where it fails, ends early, or keeps silent.
        """
        words = [self.python, "-I", "-B", "-u", f"{self.folder}/{program}", *arguments]
        # Not `exec`: the shell there turns a signal into a status, which ssh would not pass on.
        script = f"cd {shlex.quote(self.folder)} && {shlex.join(words)}; exit $?"
        try:
            process = subprocess.Popen(
                command(self.board, script),
                stdin=subprocess.PIPE,  # held open: the program ends when it closes
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise program_missing(self.board) from error
        tail = Tail(self.board.text, process.stderr)
        try:
            yield from self._events(process)
        except WorkerError as error:
            end(process)
            raise WorkerError(error.message + tail.shown(), hint=error.hint) from None
        finally:
            end(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):
                    _open(pipe).close()

    def _events(self, process: subprocess.Popen[bytes]) -> Iterator[Event]:
        lines = read_lines(process.stdout, longest=MAX_LINE_BYTES, held=LINES_HELD)
        while True:
            try:
                line = lines.get(timeout=SECONDS_OF_SILENCE)
            except queue.Empty:
                raise WorkerError(
                    f"{self.board.text}: nothing was heard for {SECONDS_OF_SILENCE:g} seconds."
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
                # Left alone until it has ended: a closed stdin would have it remove the folder.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_END)
                yield event
                return
            yield event


@contextmanager
def workspace(
    board: BoardAddress, told: Survey, *, needed_bytes: int, files: Mapping[str, Path]
) -> Iterator[Workspace]:
    """Make a folder where there is room, with some small files in it; remove it in the end.

    OutputError where no folder has the room.
    """
    needed = needed_bytes + RESERVE_BYTES
    place = next((folder for folder, free in told.spaces if free >= needed), None)
    if place is None:
        largest = max((free for _, free in told.spaces), default=0)
        raise OutputError(
            f"{board.text}: {human_bytes(needed)} are needed there; the most that is free in a "
            f"folder that can be written is {human_bytes(largest)}."
        )
    if told.python is None:
        raise UnsupportedError(
            f"{board.text}: has no python3, which measures there.",
            hint="On the board: sudo apt install python3",
        )
    folder = ask(board, f"mktemp -d {shlex.quote(place)}/{FOLDER_PREFIX}XXXXXXXX").strip()
    if not _FOLDER.fullmatch(folder):
        raise WorkerError(f"{board.text}: mktemp answered {folder[:80]!r}.")
    made = Workspace(board, folder, told.python)
    try:
        for name, file in files.items():
            made.copy(file, name, Silence())
        yield made
    finally:
        _remove(made)


def _remove(made: Workspace) -> None:
    """Kill what still runs in the folder, and remove it; log what is left where that fails."""
    folder = shlex.quote(made.folder)
    script = f"""
if p=$(cat {folder}/pid 2>/dev/null) && grep -q {FOLDER_PREFIX} "/proc/$p/cmdline" 2>/dev/null; then
    kill "$p" 2>/dev/null
    for n in 1 2 3 4 5; do kill -0 "$p" 2>/dev/null || break; sleep 1; done
    kill -9 "$p" 2>/dev/null
fi
rm -rf {folder}"""
    try:
        ask(made.board, script)
    except WorkerError as error:
        logger.warning(
            "%s may still hold %s; remove it with: rm -rf %s (%s)",
            made.board.text,
            made.folder,
            made.folder,
            error.message,
        )


def _send(board: BoardAddress, file: Path, path: str, progress: Progress) -> str:
    """Send a file through ssh itself, as boards may have neither sftp nor scp; return its size."""
    size, sent = file.stat().st_size, 0
    progress.start(COPYING, max(1, size // 10**6))
    with tempfile.TemporaryFile() as noise, file.open("rb") as source:
        try:
            process = subprocess.Popen(
                command(board, f"cat > {shlex.quote(path)} && wc -c < {shlex.quote(path)}"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise program_missing(board) from error
        try:
            target = _open(process.stdin)
            with suppress(BrokenPipeError):
                while block := source.read(_AT_ONCE):
                    target.write(block)
                    progress.advance(COPYING, (sent + len(block)) // 10**6 - sent // 10**6)
                    sent += len(block)
                target.close()
            arrived = _open(process.stdout).read(100).decode("ascii", "replace").strip()
            status = process.wait()
        finally:
            end(process)
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    _open(pipe).close()
        if status != 0:
            noise.seek(0)
            raise unreachable(board, status, noise.read())
        return arrived


def _push(board: BoardAddress, file: Path, path: str) -> None:
    arguments = ["adb", "-s", board.place, "push", str(file.resolve()), path]
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise program_missing(board) from error
    if done.returncode != 0:
        raise unreachable(board, done.returncode, done.stderr or done.stdout)


def _ended_early(board: BoardAddress, status: int) -> WorkerError:
    if status == _ILLEGAL_INSTRUCTION:
        return WorkerError(
            f"{board.text}: the runtime used an instruction that this processor does not have.",
            hint="Users report it of release 1.3.0 on the RK3588 "
            "(https://github.com/airockchip/rknn-llm/issues/518); 1.2.3 and its toolkit do not.",
        )
    if status == _SSH_FAILED and board.kind == "ssh":
        return WorkerError(f"{board.text}: the connection was lost.")
    return WorkerError(
        f"{board.text}: the measuring program ended with status {status} before it was done.",
        hint="A runtime of another release than the file's toolkit, or too little memory, ends so.",
    )


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
