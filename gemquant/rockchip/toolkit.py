"""Finds rkllm-toolkit in environments of this machine, without running any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.targets.toolkit import Toolkit, ToolkitVersion, version_key
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.runtimes.worker import Interpreter

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
    """An environment that holds a release.

    wheel: SHA-256 of the wheel that it was installed from, where pip noted it.
    """

    version: str
    python: Path
    wheel: str | None = None


def installed_toolkits() -> list[FoundToolkit]:
    """Every environment with rkllm-toolkit beside this folder and in conda's and pyenv's places."""
    found = {
        FoundToolkit(match[1], python, _wheel(package))
        for python, package in _packages("rkllm_toolkit-*.dist-info")
        if (match := _INSTALLED.fullmatch(package.name))
    }
    return sorted(found, key=lambda each: (version_key(each.version), str(each.python)))


def installed_lookalikes(toolkit: Toolkit) -> list[FoundToolkit]:
    """Every environment with the package of PyPI's that is taken for the toolkit."""
    name = re.compile(rf"{re.escape(toolkit.lookalike)}-(.+)\.dist-info")
    found = {
        FoundToolkit(match[1], python)
        for python, package in _packages(f"{toolkit.lookalike}-*.dist-info")
        if (match := name.fullmatch(package.name))
    }
    return sorted(found, key=lambda each: str(each.python))


def _packages(pattern: str) -> Iterator[tuple[Path, Path]]:
    """Interpreter and metadata folder of every installed package of a name."""
    for environment in _environments():
        python = environment / "bin" / "python"
        if python.exists():
            for package in environment.glob(f"lib/python3.*/site-packages/{pattern}"):
                yield python, package


def _wheel(package: Path) -> str | None:
    """The hash that pip notes in direct_url.json (PEP 610); older pips leave it out."""
    try:
        noted = read_json_object(package / "direct_url.json")
        return str(noted["archive_info"]["hashes"]["sha256"])
    except (OSError, GemquantError, KeyError, TypeError):
        return None


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
