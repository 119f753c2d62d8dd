"""What this machine has to convert for an NPU, and what a board has to run RKLLM files."""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from gemquant.convert.doctor import Finding
from gemquant.core.resources import human_bytes, total_memory
from gemquant.core.targets import (
    Npu,
    Target,
    Toolkit,
    load_target,
    load_toolkit,
    target_files,
    version_key,
)
from gemquant.errors import UnsupportedError
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_rkllm import OLDEST_PYTHON
from gemquant.rockchip.board_survey import Survey, survey
from gemquant.rockchip.programs.rkllm_structures import LAYOUTS, layout_of
from gemquant.rockchip.toolkit import (
    FoundToolkit,
    installed,
    next_steps,
)

SOURCE = "https://github.com/airockchip/rknn-llm"
BUILT_FOR = ("Linux", "x86_64")
WARM_CELSIUS = 80.0
"""Temperature limit of a board that does not report its own."""

_target = partial(Finding, "target")
_board = partial(Finding, "board")


# ---------------------------------------------------------------- this machine


def examine_target(target: Target) -> list[Finding]:
    """Check this machine for `gemquant rkllm --target`."""
    if target.npu is None:
        raise UnsupportedError(
            f"target {target.name}: its runtimes are examined without --target.",
            hint="Run: gemquant doctor",
        )
    toolkit = load_toolkit(target.npu.toolkit)
    # Swap is not counted: converting would crawl.
    memory = total_memory()
    weights = memory / toolkit.conversion.bytes_per_weight / 1e9
    fits = f"{human_bytes(memory)}: about {weights:.1f} billion weights, an estimate"
    free = shutil.disk_usage(Path.cwd()).free
    return [
        _machine(),
        _target("memory", "ok", fits, "the toolkit holds the whole model"),
        _target("space here", "ok", f"{human_bytes(free)} free", "twice the model"),
        *_toolkits(target.npu, toolkit),
        *_lookalikes(toolkit),
    ]


def _machine() -> Finding:
    machine = (platform.system(), platform.machine())
    name = f"{machine[0]} on {machine[1]}"
    if machine == BUILT_FOR:
        return _target("system", "ok", name, "runs the toolkit's wheels")
    command = "gemquant rkllm MODEL --prepare-only, and convert on x86-64 Linux"
    return _target("system", "warning", name, "does not run the toolkit's wheels", command)


def _toolkits(npu: Npu, toolkit: Toolkit) -> Iterator[Finding]:
    found = installed(toolkit.name)
    for each in found:
        yield _toolkit(each, npu, toolkit)
    if not found:
        converting = tuple(r for r in toolkit.versions if npu.platform in r.platforms)
        steps = next_steps(toolkit, converting, None)
        yield _target(toolkit.name, "warning", "not found", "converts for NPUs", steps)


def _toolkit(found: FoundToolkit, npu: Npu, toolkit: Toolkit) -> Finding:
    release = toolkit.version(found.version)
    name = f"{toolkit.name} {found.version}"
    if release is None:
        known = ", ".join(each.version for each in toolkit.versions)
        reason = f"{found.python}; unknown release, known are {known}"
        return _target(name, "warning", reason, "its functions may differ")
    if npu.platform not in release.platforms:
        return _target(name, "warning", f"{found.python}; does not support {npu.platform}")
    dtypes = [d.name for d in npu.dtypes if d.name in release.dtypes]
    details = f"{found.python}; {', '.join(release.generations)} to {', '.join(dtypes)}"
    if found.wheel is not None:
        origin = "the vendor's" if found.wheel in release.wheels else "unknown"
        details += f"; wheel {found.wheel[:12]}…, {origin}"
    needs = f"runtime {release.version}, NPU driver {release.driver} or newer on the board"
    return _target(name, "ok", details, needs)


def _lookalikes(toolkit: Toolkit) -> Iterator[Finding]:
    """The PyPI package that is mistaken for the toolkit, in every environment."""
    packages = {each.python: each.version for each in installed(toolkit.lookalike)}
    with suppress(metadata.PackageNotFoundError):
        packages = {Path(sys.executable): metadata.version(toolkit.lookalike), **packages}
    for python, version in packages.items():
        yield _target(
            toolkit.lookalike,
            "warning",
            f"{version} in {python}: a PyPI package that is not the vendor's toolkit",
            "nothing",
            f"{python} -m pip uninstall {toolkit.lookalike}",
        )


# ---------------------------------------------------------------- a board


def examine_board(address: BoardAddress, target: Target | None = None) -> list[Finding]:
    """Check a board. target: the chip that it must have; None for any."""
    board = survey(address)
    if target is None and board.platform in target_files():
        target = load_target(board.platform)
    npu = None if target is None else target.npu
    return [
        _system(board),
        _platform(board, npu),
        _driver(board, npu),
        *_libraries(board, npu),
        _python(board),
        _memory(board),
        _space(board),
        *_clocks(board),
        *_temperatures(board),
    ]


def _system(board: Survey) -> Finding:
    name = f"{board.system}, kernel {board.kernel}"
    if board.system == "Linux aarch64":
        return _board("system", "ok", name)
    command = "Install a 64-bit Linux image on the board."
    return _board("system", "problem", name, "the runtime needs 64-bit Linux", command)


def _platform(board: Survey, npu: Npu | None) -> Finding:
    name = board.model or "no name in its device tree"
    name += f"; {board.platform or 'no Rockchip chip in its device tree'}"
    if npu is None:
        return _board("platform", "problem", name, "no NPU that runs RKLLM files")
    if npu.platform != board.platform:
        purpose = f"does not run files for {npu.platform}"
        command = f"gemquant rkllm MODEL --target {board.platform}"
        return _board("platform", "problem", name, purpose, command)
    return _board("platform", "ok", name, f"runs files for {npu.platform}")


def _driver(board: Survey, npu: Npu | None) -> Finding:
    needed = None if npu is None else npu.driver
    wanted = "rknpu driver" if needed is None else f"rknpu driver {needed}"
    command = f"Install a kernel with the vendor's {wanted} (source: {SOURCE}, rknpu-driver)."
    if board.driver is None:
        check = "On the board: sudo cat /sys/kernel/debug/rknpu/version."
        purpose = "some boards show it only to root"
        return _board("NPU driver", "problem", "unknown", purpose, f"{check} If none: {command}")
    if needed is not None and version_key(board.driver) < version_key(needed):
        return _board("NPU driver", "problem", board.driver, f"{needed} is needed", command)
    return _board("NPU driver", "ok", board.driver, f"{needed} or newer" if needed else "")


def _libraries(board: Survey, npu: Npu | None) -> Iterator[Finding]:
    name = "librkllmrt.so"
    newest = max(LAYOUTS) if npu is None else load_toolkit(npu.toolkit).newest.version
    command = (
        f"From {SOURCE} at release-v{newest}, rkllm-runtime/Linux/librkllm_api/aarch64: copy it to "
        "the board's /usr/lib. Its release must be that of the toolkit that made the file."
    )
    if not board.libraries:
        yield _board(name, "problem", "not found", "runs RKLLM files", command)
    for library in board.libraries:
        known = [version for version in library.versions if version in LAYOUTS]
        if len(known) == 1:
            layout = layout_of(known[0])
            offers = ["speed", *["logits"] * layout.logits, *["statistics"] * layout.statistics]
            purpose = f"{', '.join(offers)}; for files made by toolkit {known[0]}"
            yield _board(name, "ok", f"{known[0]}, {library.path}", purpose)
            continue
        version = " or ".join(library.versions) or "no version in the file"
        purpose = f"known are {', '.join(LAYOUTS)}; `gemquant bench --board` asks the library"
        yield _board(name, "warning", f"{version}, {library.path}", purpose)
    if len(board.libraries) > 1:
        paths = " ".join(each.path for each in board.libraries)
        copies = f"{len(board.libraries)} copies: {paths}"
        command = "Remove all but one, or choose one with --board-library."
        yield _board(name, "warning", copies, "the first is used", command)


def _python(board: Survey) -> Finding:
    purpose = "runs the measuring program; the standard library is enough"
    if board.python is None:
        command = "On the board: sudo apt install python3"
        return _board("Python", "problem", "not found", purpose, command)
    version = ".".join(map(str, board.python_version)) or "does not start"
    details = f"{version}, {board.python}"
    if board.python_version < OLDEST_PYTHON:
        return _board("Python", "problem", details, f"{purpose}; 3.8 or newer is needed")
    return _board("Python", "ok", details, purpose)


def _memory(board: Survey) -> Finding:
    if board.memory_bytes is None or board.available_bytes is None:
        return _board("memory", "warning", "unknown")
    details = f"{human_bytes(board.memory_bytes)}, {human_bytes(board.available_bytes)} free"
    command = f"gemquant plan MODEL --target {board.platform or 'rk3588'} --memory SIZE"
    if board.available_bytes * 2 < board.memory_bytes:
        return _board("memory", "warning", details, "less than half is free", command)
    return _board("memory", "ok", details, f"what fits: {command}")


def _space(board: Survey) -> Finding:
    purpose = "for the model file and the measuring program"
    if not board.spaces:
        return _board("space", "problem", "no writable folder", purpose)
    folder, free = max(board.spaces, key=lambda each: each[1])
    return _board("space", "ok", f"{human_bytes(free)} in {folder}", purpose)


def _clocks(board: Survey) -> Iterator[Finding]:
    for name, clocks in (
        ("NPU clock", [board.npu] if board.npu else []),
        ("memory clock", [board.memory_clock] if board.memory_clock else []),
        ("processor clocks", board.cpu_clocks),
    ):
        details = "; ".join(f"{each.name} {each.words()}" for each in clocks)
        files = [shlex.quote(each.governor_path) for each in clocks if not each.is_fixed]
        if not clocks:
            yield _board(name, "warning", "unknown", "speeds may vary without an explanation")
        elif files:
            command = f"On the board: echo performance | sudo tee {' '.join(files)}"
            yield _board(name, "warning", details, "not fixed: speeds vary", command)
        else:
            yield _board(name, "ok", details, "fixed at the maximum")


def _temperatures(board: Survey) -> Iterator[Finding]:
    cool = "Cool the board: a heat sink, a fan, or time."
    hottest = board.hottest
    if hottest is None:
        yield _board("temperature", "warning", "unknown", "throttling would go unnoticed")
    else:
        limit = hottest.limit or WARM_CELSIUS
        details = f"{hottest.name} {hottest.celsius:.0f} °C"
        purpose = f"throttles from {limit:.0f} °C"
        if hottest.celsius >= limit:
            yield _board("temperature", "warning", details, purpose, cool)
        else:
            yield _board("temperature", "ok", details, purpose)
    throttling = [f"{each.name} by {each.state}" for each in board.cooling if each.slows]
    if throttling:
        details = ", ".join(throttling)
        yield _board("thermal throttling", "warning", details, "clocks are reduced now", cool)
