"""What of a board can run RKLLM files, and how fast: driver, runtime, memory, clocks, heat."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from gemquant.core.finding import Finding, State
from gemquant.core.resources import human_bytes
from gemquant.core.targets.target import Target, load_target, target_files
from gemquant.core.targets.toolkit import Toolkit, load_toolkit, version_key
from gemquant.rockchip.board import BoardAddress, Survey, survey
from gemquant.rockchip.board.survey import Clock
from gemquant.rockchip.programs.rkllm_structures import LAYOUTS, layout_of

GROUP = "board"
OLDEST_PYTHON = (3, 8)
SOURCE = "https://github.com/airockchip/rknn-llm"
WARM_CELSIUS = 80.0
"""From here on a board is called hot where it does not tell its own limit."""


def examine_board(board: BoardAddress, target: Target | None = None) -> list[Finding]:
    """Everything that matters on a board. target: what it must be; its own chip's where None."""
    told = survey(board)
    chip = _target(told) if target is None else target
    needed = chip.npu.driver if chip is not None and chip.npu is not None else None
    toolkit = load_toolkit(chip.npu.toolkit) if chip is not None and chip.npu is not None else None
    return [
        _system(told),
        _platform(told, chip),
        _driver(told, needed),
        *_libraries(told, toolkit),
        _python(told),
        _memory(told),
        _space(told),
        *_clocks(told),
        *_heat(told),
    ]


def _target(told: Survey) -> Target | None:
    return load_target(told.platform) if told.platform in target_files() else None


def _finding(
    name: str, state: State, found: str, purpose: str = "", command: str | None = None
) -> Finding:
    return Finding(GROUP, name, state, found, purpose, command)


def _system(told: Survey) -> Finding:
    found = f"{told.system}, kernel {told.kernel}"
    if told.system == "Linux aarch64":
        return _finding("system", "ok", found)
    return _finding(
        "system", "problem", found, "the runtime and its measuring are for 64-bit Linux",
        "Install a 64-bit Linux image on the board.",
    )  # fmt: skip


def _platform(told: Survey, chip: Target | None) -> Finding:
    found = told.model or "no name in its device tree"
    found += f"; {told.platform or 'no chip of Rockchip that it tells'}"
    npu = None if chip is None else chip.npu
    if npu is None:
        return _finding("platform", "problem", found, "none whose NPU runs RKLLM files")
    if npu.platform != told.platform:
        return _finding(
            "platform", "problem", found, f"files for {npu.platform} do not run on it",
            f"gemquant rkllm MODEL --target {told.platform}",
        )  # fmt: skip
    return _finding("platform", "ok", found, f"runs files for {npu.platform}")


def _driver(told: Survey, needed: str | None) -> Finding:
    command = (
        f"Install a kernel with the vendor's rknpu driver {needed or ''} "
        f"(its source: {SOURCE}, rknpu-driver)."
    ).replace("  ", " ")
    if told.driver is None:
        return _finding(
            "NPU driver", "problem", "not told", "some boards tell root alone",
            f"On the board: sudo cat /sys/kernel/debug/rknpu/version. If there is none: {command}",
        )  # fmt: skip
    if needed is not None and version_key(told.driver) < version_key(needed):
        return _finding("NPU driver", "problem", told.driver, f"{needed} is needed", command)
    return _finding("NPU driver", "ok", told.driver, f"{needed} or newer" if needed else "")


def _libraries(told: Survey, toolkit: Toolkit | None) -> Iterator[Finding]:
    name = "librkllmrt.so"
    newest = toolkit.newest.version if toolkit is not None else max(LAYOUTS)
    command = (
        f"From {SOURCE} at release-v{newest}, rkllm-runtime/Linux/librkllm_api/aarch64: copy it to "
        "the board's /usr/lib. Its release must be that of the toolkit that made the file."
    )
    if not told.libraries:
        yield _finding(name, "problem", "not found", "runs RKLLM files", command)
    for library in told.libraries:
        known = [version for version in library.versions if version in LAYOUTS]
        if len(known) == 1:
            offers = layout_of(known[0])
            purpose = ", ".join(
                [
                    "speed",
                    *(["logits"] if offers.logits else []),
                    *(["its own statistics"] if offers.statistics else []),
                ]
            )
            purpose += f"; for files made by toolkit {known[0]}"
            yield _finding(name, "ok", f"{known[0]}, {library.path}", purpose)
            continue
        told_so = " or ".join(library.versions) or "no version in its file"
        purpose = f"known are {', '.join(LAYOUTS)}; `gemquant bench --board` asks it on loading"
        yield _finding(name, "warning", f"{told_so}, {library.path}", purpose)
    if len(told.libraries) > 1:
        paths = " ".join(each.path for each in told.libraries)
        yield _finding(
            name, "warning", f"{len(told.libraries)} of them: {paths}", "the first is used",
            "Remove all but one, or name one with --board-library.",
        )  # fmt: skip


def _python(told: Survey) -> Finding:
    purpose = "measuring; the standard library is enough"
    if told.python is None:
        return _finding(
            "Python", "problem", "not found", purpose, "On the board: sudo apt install python3"
        )
    found = f"{'.'.join(map(str, told.python_version)) or 'does not start'}, {told.python}"
    if told.python_version < OLDEST_PYTHON:
        return _finding("Python", "problem", found, f"{purpose}; 3.8 or newer is needed")
    return _finding("Python", "ok", found, purpose)


def _memory(told: Survey) -> Finding:
    if told.memory_bytes is None or told.available_bytes is None:
        return _finding("memory", "warning", "not told")
    found = f"{human_bytes(told.memory_bytes)}, {human_bytes(told.available_bytes)} of it free"
    command = f"gemquant plan MODEL --target {told.platform or 'rk3588'} --memory SIZE"
    if told.available_bytes * 2 < told.memory_bytes:
        return _finding("memory", "warning", found, "less than half is free", command)
    return _finding("memory", "ok", found, f"what fits: {command}")


def _space(told: Survey) -> Finding:
    if not told.spaces:
        return _finding("space", "problem", "no folder can be written", "the file is copied there")
    folder, free = max(told.spaces, key=lambda each: each[1])
    return _finding("space", "ok", f"{human_bytes(free)} in {folder}", "the file is copied there")


def _clocks(told: Survey) -> Iterator[Finding]:
    cpus = [each for each in told.clocks if each.kind == "cpu"]
    for what, clocks in (
        ("NPU clock", [] if told.npu is None else [told.npu]),
        ("memory clock", [] if told.memory_clock is None else [told.memory_clock]),
        ("processor clocks", cpus),
    ):
        if not clocks:
            yield _finding(what, "warning", "not told", "speeds cannot be explained by it")
            continue
        found = "; ".join(f"{each.name} {each.words()}" for each in clocks)
        if all(each.is_fixed for each in clocks):
            yield _finding(what, "ok", found, "fixed at its highest")
        else:
            yield _finding(
                what, "warning", found, "not fixed: speeds vary", f"On the board: {_fix(clocks)}"
            )


def _fix(clocks: Sequence[Clock]) -> str:
    files = " ".join(shlex.quote(each.governor_path) for each in clocks if not each.is_fixed)
    return f"echo performance | sudo tee {files}"


def _heat(told: Survey) -> Iterator[Finding]:
    hottest = told.hottest
    if hottest is None:
        yield _finding("temperature", "warning", "not told", "slowing down would go unnoticed")
    else:
        limit = hottest.limit or WARM_CELSIUS
        found = f"{hottest.name} {hottest.celsius:.0f} °C"
        purpose = f"slows down from {limit:.0f} °C"
        hot = hottest.celsius >= limit
        yield _finding(
            "temperature", "warning" if hot else "ok", found, purpose,
            "Cool it: a heat sink, a fan, or time." if hot else None,
        )  # fmt: skip
    slowed = [each for each in told.cooling if each.slows]
    if slowed:
        found = ", ".join(f"{each.name} by {each.state}" for each in slowed)
        yield _finding(
            "thermal throttling", "warning", found, "clocks are taken away now",
            "Cool it: a heat sink, a fan, or time.",
        )  # fmt: skip
