"""Finds rkllm-toolkit in environments of this machine, without running any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemquant.errors import RuntimeMissingError, UnsupportedError
from gemquant.toolkit import Toolkit, ToolkitVersion, version_key
from gemquant.workers import Interpreter

AUTO = "auto"
ASKED = ("rkllm-toolkit", "rkllm", "torch", "transformers", "numpy")
_INSTALLED = re.compile(r"rkllm_toolkit-(\d+(?:\.\d+)*)\S*\.dist-info")
_PLACES = (
    "~/miniforge3/envs",
    "~/miniconda3/envs",
    "~/anaconda3/envs",
    "~/.conda/envs",
    "~/.virtualenvs",
    "~/.pyenv/versions",
)


@dataclass(frozen=True)
class FoundToolkit:
    """An environment that holds a release."""

    version: str
    python: Path


def installed_toolkits() -> list[FoundToolkit]:
    """Every environment with rkllm-toolkit beside this folder and in conda's and pyenv's places."""
    found = {
        FoundToolkit(match[1], environment / "bin" / "python")
        for environment in _environments()
        for package in environment.glob("lib/python3.*/site-packages/rkllm_toolkit-*.dist-info")
        if (match := _INSTALLED.fullmatch(package.name))
        and (environment / "bin" / "python").exists()
    }
    return sorted(found, key=lambda each: (version_key(each.version), str(each.python)))


def _environments() -> Iterator[Path]:
    places = [Path(place).expanduser() for place in _PLACES]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
            places.append(Path(os.environ[variable]).parent)
    for place in (*places, Path.cwd()):
        if place.is_dir():
            yield from (each for each in sorted(place.iterdir()) if each.is_dir())


def choose_toolkit(choice: str, toolkit: Toolkit, able: tuple[ToolkitVersion, ...]) -> Interpreter:
    """Ask the interpreter that was named, or the newest found that converts this.

    able: releases that do. RuntimeMissingError with the next steps where there is none.
    """
    if choice != AUTO:
        interpreter = Interpreter.ask(choice, ASKED)
        if interpreter.packages[toolkit.name] is None:
            raise RuntimeMissingError(
                f"--toolkit {choice}: {toolkit.name} is not installed in it{_stub(interpreter)}.",
                hint=next_steps(toolkit, able, str(interpreter.path)),
            )
        return interpreter
    numbers = {each.version for each in able}
    suitable = [each for each in installed_toolkits() if each.version in numbers]
    if not suitable:
        others = ", ".join(f"{e.version} ({e.python})" for e in installed_toolkits())
        has = f"; found are {others}, which do not convert this" if others else ""
        raise RuntimeMissingError(
            f"{toolkit.name}: not found on this machine{has}.", hint=next_steps(toolkit, able, None)
        )
    return Interpreter.ask(str(suitable[-1].python), ASKED)


def release_of(interpreter: Interpreter, toolkit: Toolkit) -> ToolkitVersion:
    """What is known of the release that an interpreter has; UnsupportedError for an unknown one."""
    number = str(interpreter.packages[toolkit.name]).partition("+")[0]
    release = toolkit.version(number)
    if release is None:
        known = ", ".join(each.version for each in toolkit.versions)
        raise UnsupportedError(
            f"{toolkit.name} {number}: known are {known}.",
            hint="Its functions may differ; install one of those.",
        )
    return release


def next_steps(toolkit: Toolkit, able: tuple[ToolkitVersion, ...], python: str | None) -> str:
    """Say how to come by the toolkit."""
    if not able:
        return "No release of it converts this model so."
    release = able[-1]
    wheel = f"{toolkit.name.replace('-', '_')}-{release.version}-*-linux_x86_64.whl"
    aside = f"it is not on PyPI; {toolkit.lookalike} there is something else"
    steps = [f"Download {wheel} from {toolkit.releases} ({aside})."]
    if python is None:
        python = "rkllm-venv/bin/python"
        steps.append(f"python{release.python[-1]} -m venv rkllm-venv")
    steps += [
        f"{python} -m pip install THE-WHEEL",
        f"Run this again with --toolkit {python}; or with --prepare-only, without a toolkit.",
    ]
    return "\n    ".join(steps)


def _stub(interpreter: Interpreter) -> str:
    stub = interpreter.packages["rkllm"]
    return "" if stub is None else f"; rkllm {stub} is a package of PyPI's that is something else"
