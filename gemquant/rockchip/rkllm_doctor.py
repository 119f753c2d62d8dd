"""What of this machine can convert for an NPU: system, memory, space, toolkits."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from gemquant.convert.doctor import Finding
from gemquant.core.resources import human_bytes, total_memory
from gemquant.core.targets.target import Target
from gemquant.core.targets.toolkit import Toolkit, load_toolkit
from gemquant.errors import UnsupportedError
from gemquant.rockchip.toolkit import (
    FoundToolkit,
    installed_lookalikes,
    installed_toolkits,
    next_steps,
)

GROUP = "target"
BUILT_FOR = ("Linux", "x86_64")


def examine_target(target: Target) -> list[Finding]:
    """Everything that `gemquant rkllm --target` needs of this machine."""
    if target.npu is None:
        raise UnsupportedError(
            f"target {target.name}: its runtimes are examined without --target.",
            hint="Run: gemquant doctor",
        )
    toolkit = load_toolkit(target.npu.toolkit)
    return [_system(), _memory(toolkit), _space(), *_toolkits(target, toolkit), *_stubs(toolkit)]


def _system() -> Finding:
    here = (platform.system(), platform.machine())
    found = f"{here[0]} on {here[1]}"
    if here == BUILT_FOR:
        return Finding(GROUP, "system", "ok", found, "the toolkit's wheels run here")
    command = "gemquant rkllm MODEL --prepare-only, and convert on x86-64 Linux"
    return Finding(GROUP, "system", "warning", found, "the toolkit's wheels do not", command)


def _memory(toolkit: Toolkit) -> Finding:
    """Weights that fit by the toolkit's estimate. Swap is not counted: conversion would crawl."""
    memory = total_memory()
    weights = memory / toolkit.conversion.bytes_per_weight / 1e9
    found = f"{human_bytes(memory)}: about {weights:.1f} billion weights, an estimate"
    return Finding(GROUP, "memory", "ok", found, "the toolkit holds the whole model")


def _space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding(GROUP, "space here", "ok", f"{human_bytes(free)} free", "twice the model")


def _toolkits(target: Target, toolkit: Toolkit) -> list[Finding]:
    assert target.npu is not None
    found = installed_toolkits()
    if found:
        return [_toolkit(each, target, toolkit) for each in found]
    able = tuple(r for r in toolkit.versions if target.npu.platform in r.platforms)
    steps = next_steps(toolkit, able, None)
    return [Finding(GROUP, toolkit.name, "warning", "not found", "converts for NPUs", steps)]


def _toolkit(found: FoundToolkit, target: Target, toolkit: Toolkit) -> Finding:
    assert target.npu is not None
    release = toolkit.version(found.version)
    name = f"{toolkit.name} {found.version}"
    if release is None:
        known = ", ".join(each.version for each in toolkit.versions)
        told = f"{found.python}; not a release that is known: {known}"
        return Finding(GROUP, name, "warning", told, "its functions may differ")
    if target.npu.platform not in release.platforms:
        told = f"{found.python}; does not know {target.npu.platform}"
        return Finding(GROUP, name, "warning", told, "")
    dtypes = [d.name for d in target.npu.dtypes if d.name in release.dtypes]
    told = f"{found.python}; {', '.join(release.generations)} to {', '.join(dtypes)}"
    if found.wheel is not None:
        known = "the vendor's" if found.wheel in release.wheels else "not one that is known"
        told += f"; wheel {found.wheel[:12]}…, {known}"
    needs = f"runtime {release.version}, NPU driver {release.driver} or newer on the board"
    return Finding(GROUP, name, "ok", told, needs)


def _stubs(toolkit: Toolkit) -> list[Finding]:
    """The package of PyPI's that is taken for the toolkit, wherever it is."""
    found = {Path(sys.executable): number} if (number := _here(toolkit.lookalike)) else {}
    found |= {each.python: each.version for each in installed_lookalikes(toolkit)}
    return [
        Finding(
            GROUP,
            toolkit.lookalike,
            "warning",
            f"{number} in {python}: a package of PyPI's that is not the vendor's toolkit",
            "nothing",
            f"{python} -m pip uninstall {toolkit.lookalike}",
        )
        for python, number in found.items()
    ]


def _here(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
