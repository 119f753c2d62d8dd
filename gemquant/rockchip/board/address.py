"""How a board is named: ``ssh://user@host:port`` or ``adb:SERIAL``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from gemquant.errors import UsageError

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
