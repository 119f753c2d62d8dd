"""A contract test against a stand-in: no board has answered here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gemquant.convert.doctor import Finding
from gemquant.core.targets import load_target
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.doctor import examine_board
from tests.helpers.stand_in_board import StandInBoard, make_board
from tests.unit.cli.conftest import Run, run  # noqa: F401 (a fixture)

ADDRESS = BoardAddress.parse("ssh://rock@rock-5b.local")
RUNTIME = "usr/lib/librkllmrt.so"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInBoard:
    made = make_board(tmp_path / "board")
    made.write(RUNTIME, "\x7fELF\0rkllm-runtime version: 1.2.3\0")
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.environ['PATH']}")
    return made


def finding(name: str, *, target: str | None = None) -> Finding:
    chip = None if target is None else load_target(target)
    (found,) = [each for each in examine_board(ADDRESS, chip) if each.name == name]
    return found


def test_a_board_that_has_everything_has_no_complaint(board: StandInBoard) -> None:
    found = examine_board(ADDRESS)
    assert [(each.name, each.state) for each in found] == [
        ("system", "ok"),
        ("platform", "ok"),
        ("NPU driver", "ok"),
        ("librkllmrt.so", "ok"),
        ("Python", "ok"),
        ("memory", "ok"),
        ("space", "ok"),
        ("NPU clock", "ok"),
        ("memory clock", "ok"),
        ("processor clocks", "ok"),
        ("temperature", "ok"),
    ]
    assert all(each.command is None for each in found)


def test_an_old_driver_is_a_problem(board: StandInBoard) -> None:
    board.write("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.6\n")
    driver = finding("NPU driver")
    assert (driver.state, driver.found, driver.purpose) == ("problem", "0.9.6", "0.9.8 is needed")
    assert "rknpu driver 0.9.8" in str(driver.command)


def test_another_chip_than_the_target_is_a_problem(board: StandInBoard) -> None:
    platform = finding("platform", target="rk3576")
    assert (platform.state, platform.found) == ("problem", "Radxa ROCK 5B; rk3588")
    assert platform.command == "gemquant rkllm MODEL --target rk3588"


def test_a_missing_runtime_says_where_it_comes_from(board: StandInBoard) -> None:
    (board.root / RUNTIME).unlink()
    runtime = finding("librkllmrt.so")
    assert (runtime.state, runtime.found) == ("problem", "not found")
    assert "release-v1.3.0, rkllm-runtime/Linux/librkllm_api/aarch64" in str(runtime.command)


def test_a_runtime_that_is_not_known_is_a_warning(board: StandInBoard) -> None:
    board.write(RUNTIME, "rkllm-runtime version: 1.2.1b1\0")
    runtime = finding("librkllmrt.so")
    assert (runtime.state, runtime.found.split(",")[0]) == ("warning", "1.2.1b1")


@pytest.mark.parametrize(("version", "offers"), [("1.1.4", "speed;"), ("1.2.0", "speed, logits;")])
def test_a_runtime_is_told_with_what_it_can_be_asked(
    version: str, offers: str, board: StandInBoard
) -> None:
    board.write(RUNTIME, f"rkllm-runtime version: {version}\0")
    assert finding("librkllmrt.so").purpose.startswith(offers)


def test_a_clock_that_is_not_fixed_comes_with_the_command(board: StandInBoard) -> None:
    board.clock("sys/class/devfreq/fdab0000.npu", "rknpu_ondemand", 300000000, 1000000000)
    npu = finding("NPU clock")
    assert (npu.state, npu.found) == ("warning", "fdab0000.npu rknpu_ondemand, 300 of 1000 MHz")
    governor = f"{board.root}/sys/class/devfreq/fdab0000.npu/governor"
    assert npu.command == f"On the board: echo performance | sudo tee {governor}"


def test_a_board_that_slows_down_is_told(board: StandInBoard) -> None:
    board.write("sys/class/thermal/thermal_zone0/temp", "86000\n")
    board.write("sys/class/thermal/cooling_device0/cur_state", "3\n")
    assert finding("temperature").state == "warning"
    throttling = finding("thermal throttling")
    assert (throttling.state, throttling.found) == ("warning", "thermal-cpufreq-0 by 3")


def test_the_command_prints_the_board_beside_the_target(
    board: StandInBoard,
    run: Run,  # noqa: F811
) -> None:
    done = run("doctor", "--target", "rk3588", "--board", "adb:0123ABCD", "--json")
    groups = [each["group"] for each in json.loads(done.out)]
    assert done.code == 0
    assert set(groups) == {"target", "board"}


def test_an_address_that_is_none_is_a_usage_error(run: Run) -> None:  # noqa: F811
    done = run("doctor", "--board", "rock-5b.local")
    assert done.code == 2
    assert "write ssh://user@host, ssh://user@host:port or adb:SERIAL" in done.err
