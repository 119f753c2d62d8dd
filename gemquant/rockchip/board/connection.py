"""A board's address, and commands for it through the system's ``ssh`` and ``adb``.

No local shell is involved, and the host's key is checked as ssh is configured to; BatchMode only
keeps ssh from asking. A command is one POSIX script, quoted for the remote shell. Its last line
prints the exit status, because old adb daemons do not pass it on.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import Literal, Self

from gemquant.errors import RuntimeMissingError, UsageError, WorkerError

_SSH = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
_ADB = re.compile(r"adb:(?P<serial>[A-Za-z0-9][A-Za-z0-9._:-]*)")
_FORM = "write ssh://user@host, ssh://user@host:port or adb:SERIAL"


@dataclass(frozen=True)
class BoardAddress:
    """Where a board is.

    text: as the user wrote it. place: for ssh the host, a user before it where one was given; for
    adb the serial. Neither begins with a dash, nor holds anything that a shell would read.
    """

    text: str
    kind: Literal["ssh", "adb"]
    place: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; UsageError where it is none."""
        if match := _ADB.fullmatch(text):
            return cls(text, "adb", match["serial"])
        match = _SSH.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--board {text}: not an address of a board; {_FORM}.",
                hint="`adb devices` lists serials; ~/.ssh/config may name keys and other options.",
            )
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 1 <= port <= 65535:
            raise UsageError(f"--board {text}: port {port} is not between 1 and 65535.")
        host = match["host"].strip("[]")
        return cls(text, "ssh", f"{match['user']}@{host}" if match["user"] else host, port)


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
