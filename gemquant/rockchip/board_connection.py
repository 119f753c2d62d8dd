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
    """The address of a board.

    text: as the user wrote it. destination: [user@]host for ssh, the serial for adb; neither begins
    with a dash or holds a character that is special to a shell.
    """

    text: str
    kind: Literal["ssh", "adb"]
    destination: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address; UsageError if it is not valid."""
        if match := _ADB.fullmatch(text):
            return cls(text, "adb", match["serial"])
        match = _SSH.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--board {text}: not a board's address; {_FORM}.",
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
    """Command line that runs a ``sh`` script on a board."""
    remote = f"sh -c {shlex.quote(script)}"
    if board.kind == "adb":
        return ["adb", "-s", board.destination, "shell", remote]
    port = ["-p", str(board.port)] if board.port is not None else []
    return ["ssh", "-T", *_OPTIONS, *port, "--", board.destination, remote]


_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={SECONDS_TO_CONNECT}"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
)


def ask(board: BoardAddress, script: str, *, seconds: float = 30.0) -> str:
    """Run a script and return its stdout.

    RuntimeMissingError without ssh or adb; WorkerError if the board cannot be reached, does not
    answer in time, or the script fails.
    """
    arguments = command(board, f"( {script}\n); status=$?; echo; echo gemquant-status $status")
    logger.debug("%s: %s", board.text, script)
    try:
        process = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=seconds
        )
    except FileNotFoundError as error:
        raise RuntimeMissingError(
            f"{board.text}: the program {board.kind} is not installed on this machine.",
            hint=f"On Debian or Ubuntu: sudo apt install {_PACKAGES[board.kind]}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise WorkerError(
            f"{board.text}: no answer within {seconds:g} seconds.", hint=_next_step(board)
        ) from error
    output = process.stdout[:MAX_ANSWER_BYTES].decode("utf-8", "replace").replace("\r\n", "\n")
    match = _STATUS.search(output)
    if match is None:
        raise unreachable(board, process.returncode, process.stderr)
    if match[1] != "0":
        reason = _last_line(process.stderr) or f"status {match[1]}"
        raise WorkerError(f"{board.text}: a command failed on the board: {reason}.")
    return output[: match.start()].rstrip("\n")


def unreachable(board: BoardAddress, status: int, stderr: bytes) -> WorkerError:
    """The error for a connection that failed or broke."""
    reason = _last_line(stderr) or f"{board.kind} ended with status {status}"
    return WorkerError(f"{board.text}: cannot be reached: {reason}.", hint=_next_step(board))


def printable(text: str) -> str:
    """Text of a board without control characters."""
    return "".join(c for c in text if c.isprintable())


def _next_step(board: BoardAddress) -> str:
    if board.kind == "adb":
        serial = board.destination
        return f"adb devices must list {serial} as `device`; try: adb -s {serial} shell"
    host = (f"-p {board.port} " if board.port is not None else "") + board.destination
    return (
        "ssh must work without a password and with the host key known. Accept the key: "
        f"ssh {host} true; then install yours: ssh-copy-id {host}"
    )


def _last_line(stderr: bytes) -> str:
    """The last line that is not empty, without control characters."""
    text = stderr.decode("utf-8", "replace")
    lines = [line for line in (printable(line).strip() for line in text.splitlines()) if line]
    return lines[-1][:_SHOWN].rstrip(".") if lines else ""
