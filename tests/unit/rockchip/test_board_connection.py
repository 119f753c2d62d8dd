from __future__ import annotations

import pytest

from gemquant.errors import UsageError
from gemquant.rockchip.board_connection import BoardAddress


@pytest.mark.parametrize(
    ("text", "kind", "place", "port"),
    [
        ("ssh://rock@rock-5b.local", "ssh", "rock@rock-5b.local", None),
        ("ssh://192.168.1.7:2222", "ssh", "192.168.1.7", 2222),
        ("ssh://root@[fd00::5]:22", "ssh", "root@fd00::5", 22),
        ("adb:0123ABCD", "adb", "0123ABCD", None),
        ("adb:192.168.1.7:5555", "adb", "192.168.1.7:5555", None),
    ],
)
def test_addresses_are_read(text: str, kind: str, place: str, port: int | None) -> None:
    board = BoardAddress.parse(text)
    assert (board.kind, board.destination, board.port) == (kind, place, port)


@pytest.mark.parametrize(
    "text",
    [
        "rock-5b.local",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://-l@host",
        "ssh://a@b;reboot",
        "ssh://host/path",
        "ssh://user:password@host",
        "adb:",
        "adb:-e",
        "adb:a b",
        "ssh://host:70000",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--board"):
        BoardAddress.parse(text)
