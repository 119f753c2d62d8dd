"""A contract test of the commands, against a stand-in: no board has answered here."""

from __future__ import annotations

import pytest

from gemquant.errors import RuntimeMissingError, WorkerError
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_survey import survey
from tests.helpers.stand_in_board import StandInBoard

BOARDS = [BoardAddress.parse(text) for text in ("ssh://rock@rock-5b.local:2222", "adb:0123ABCD")]


@pytest.mark.parametrize("board", BOARDS, ids=["ssh", "adb"])
def test_a_board_tells_what_its_files_say(board: BoardAddress, stand_in: StandInBoard) -> None:
    stand_in.write("usr/lib/librkllmrt.so", "\x7fELF\0\x01\x02 x1.9.9\0" + "1.2.3\0GCC: 9.1.0x\0")
    told = survey(board)
    assert (told.system, told.kernel) == ("Linux aarch64", "6.1.115-vendor-rk35xx")
    assert (told.model, told.platform, told.driver) == ("Radxa ROCK 5B", "rk3588", "0.9.8")
    assert (told.processors, told.load_average) == (8, 0.07)
    assert (told.memory_bytes, told.available_bytes) == (8054824 * 1024, 7340032 * 1024)
    assert [(c.name, c.governor, c.hertz, c.highest_hertz) for c in told.clocks] == [
        ("policy0", "performance", 1_800_000_000, 1_800_000_000),
        ("policy4", "performance", 2_352_000_000, 2_352_000_000),
        ("dmc", "performance", 2_112_000_000, 2_112_000_000),
        ("fdab0000.npu", "userspace", 1_000_000_000, 1_000_000_000),
    ]
    (heat,) = told.temperatures
    assert (heat.name, heat.celsius, heat.limit) == ("soc-thermal", 46.23, 85.0)
    assert [(c.name, c.state, c.slows) for c in told.cooling] == [
        ("thermal-cpufreq-0", 0, False),
        ("pwm-fan", 2, False),
    ]
    (library,) = told.libraries
    assert (library.path, library.versions) == (
        f"{stand_in.root}/usr/lib/librkllmrt.so",
        ("1.2.3",),
    )
    assert told.python is not None
    assert told.python_version >= (3, 8)


def test_the_rk3588s_is_an_rk3588(stand_in: StandInBoard) -> None:
    stand_in.write("proc/device-tree/compatible", "xunlong,orangepi-5\0rockchip,rk3588s\0")
    assert survey(BOARDS[0]).platform == "rk3588"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("sys/module/rknpu/version", "0.9.6\n"),
        (
            "bin/dmesg",
            "#!/bin/sh\necho '[drm] Initialized rknpu 0.9.6 20240322 for fdab0000.npu'\n",
        ),
    ],
    ids=["module", "kernel log"],
)
def test_a_driver_that_only_root_may_ask_is_found_elsewhere(
    path: str, content: str, stand_in: StandInBoard
) -> None:
    (stand_in.root / "sys/kernel/debug/rknpu/version").unlink()
    stand_in.write(path, content)
    assert survey(BOARDS[0]).driver == "0.9.6"


def test_ssh_asks_nothing_and_checks_host_keys(stand_in: StandInBoard) -> None:
    survey(BOARDS[0])
    (call,) = stand_in.log()
    assert call[:-1] == [
        "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
        "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
        "-p", "2222", "--", "rock@rock-5b.local",
    ]  # fmt: skip
    assert not any("StrictHostKeyChecking" in argument for argument in call)


def test_adb_speaks_to_the_named_device_alone(stand_in: StandInBoard) -> None:
    survey(BOARDS[1])
    (call,) = stand_in.log()
    assert call[:4] == ["adb", "-s", "0123ABCD", "shell"]


def test_without_ssh_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        RuntimeMissingError, match="the program ssh is not installed on this machine"
    ) as error:
        survey(BOARDS[0])
    assert error.value.hint == "On Debian or Ubuntu: sudo apt install openssh-client"


def test_what_a_terminal_would_act_on_is_left_out(stand_in: StandInBoard) -> None:
    stand_in.write("proc/device-tree/model", "Radxa \x1b[2JROCK\x07\0")
    assert survey(BOARDS[0]).model == "Radxa [2JROCK"


def test_a_board_that_refuses_is_told_with_what_to_do(stand_in: StandInBoard) -> None:
    stand_in.write("refuse", "Host key verification failed.\r\n")
    with pytest.raises(WorkerError, match=r"reached: Host key verification failed\.\n") as e:
        survey(BOARDS[0])
    assert e.value.hint is not None
    assert "ssh -p 2222 rock@rock-5b.local true" in e.value.hint
