"""Commands for a board, through the system's own ``ssh`` and ``adb``.

No shell of ours is involved, and the host's key is checked as ssh is configured to: BatchMode only
keeps it from asking. A command is one POSIX script, quoted for the shell at the other end. Its
status is said in a last line of its own, because old adb daemons do not pass it on.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess

from gemquant.errors import RuntimeMissingError, WorkerError
from gemquant.rockchip.board.address import BoardAddress

logger = logging.getLogger(__name__)

SECONDS_TO_CONNECT = 10
MAX_ANSWER_BYTES = 1_000_000
_SHOWN = 400
_STATUS = re.compile(r"(?:^|\n)gemquant-status (\d+)\s*\Z")
_PACKAGES = {"ssh": "openssh-client", "adb": "adb"}


def command(board: BoardAddress, script: str) -> list[str]:
    """Arguments of the program that runs a script of ``sh`` on a board."""
    remote = f"sh -c {shlex.quote(script)}"
    if board.kind == "adb":
        return ["adb", "-s", board.place, "shell", remote]
    port = ["-p", str(board.port)] if board.port is not None else []
    return ["ssh", "-T", *_OPTIONS, *port, "--", board.place, remote]


_OPTIONS = (
    "-o",
    "BatchMode=yes",
    "-o",
    f"ConnectTimeout={SECONDS_TO_CONNECT}",
    "-o",
    "ServerAliveInterval=15",
    "-o",
    "ServerAliveCountMax=4",
)


def ask(board: BoardAddress, script: str, *, seconds: float = 30.0) -> str:
    """Run a script to its end and return what it said on stdout.

    RuntimeMissingError where ssh or adb is missing; WorkerError where the board cannot be reached,
    does not answer in time, or the script fails.
    """
    arguments = command(board, f"( {script}\n); status=$?; echo; echo gemquant-status $status")
    logger.debug("%s: %s", board.text, script)
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise program_missing(board) from error
    except subprocess.TimeoutExpired as error:
        raise WorkerError(
            f"{board.text}: no answer within {seconds:g} seconds.", hint=_by_hand(board)
        ) from error
    said = done.stdout[:MAX_ANSWER_BYTES].decode("utf-8", "replace").replace("\r\n", "\n")
    match = _STATUS.search(said)
    if match is None:
        raise unreachable(board, done.returncode, done.stderr)
    if match[1] != "0":
        why = _last(done.stderr) or f"status {match[1]}"
        raise WorkerError(f"{board.text}: a command failed there: {why}.")
    return said[: match.start()].rstrip("\n")


def program_missing(board: BoardAddress) -> RuntimeMissingError:
    """The error where ``ssh`` or ``adb`` is not installed here."""
    return RuntimeMissingError(
        f"{board.text}: the program {board.kind} is not installed here.",
        hint=f"On Debian or Ubuntu: sudo apt install {_PACKAGES[board.kind]}",
    )


def unreachable(board: BoardAddress, status: int, stderr: bytes) -> WorkerError:
    """The error where a connection could not be made, or broke."""
    why = _last(stderr) or f"{board.kind} ended with status {status}"
    return WorkerError(f"{board.text}: cannot be reached: {why}.", hint=_by_hand(board))


def printable(text: str) -> str:
    """What a board said, without what a terminal would act on."""
    return "".join(c for c in text if c.isprintable())


def _by_hand(board: BoardAddress) -> str:
    if board.kind == "adb":
        return f"adb devices must list {board.place} as `device`; try: adb -s {board.place} shell"
    port = f" -p {board.port}" if board.port is not None else ""
    return (
        "It must work without a password, with its host key known; try, and accept the key: "
        f"ssh{port} {board.place} true; then, for a key of yours: ssh-copy-id{port} {board.place}"
    )


def _last(stderr: bytes) -> str:
    """The last line that says something, without what a terminal would act on."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    said = [printable(line).strip() for line in lines]
    return next((line for line in reversed(said) if line), "")[:_SHOWN].rstrip(".")
