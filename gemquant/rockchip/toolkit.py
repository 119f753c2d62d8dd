"""Find rkllm-toolkit in this machine's Python environments, and choose a release."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.targets import Toolkit, ToolkitVersion, version_key
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.rockchip.options import AUTO
from gemquant.runtimes.worker import Interpreter

PACKAGES = ("rkllm-toolkit", "rkllm", "torch", "transformers", "numpy")
_INSTALLED = re.compile(r"rkllm_toolkit-(\d+(?:\.\d+)*)\S*\.dist-info")
_FOLDERS = (
    "~/miniforge3/envs",
    "~/miniconda3/envs",
    "~/anaconda3/envs",
    "~/.conda/envs",
    "~/.virtualenvs",
    "~/.pyenv/versions",
)


@dataclass(frozen=True)
class FoundToolkit:
    """A release in an environment. wheel: SHA-256 of its wheel, if pip recorded it."""

    version: str
    python: Path
    wheel: str | None = None


def installed_toolkits() -> list[FoundToolkit]:
    """Every environment with rkllm-toolkit, in this folder and those of conda and pyenv."""
    toolkits = {
        FoundToolkit(match[1], python, _wheel(package))
        for python, package in _packages("rkllm_toolkit-*.dist-info")
        if (match := _INSTALLED.fullmatch(package.name))
    }
    return sorted(toolkits, key=lambda each: (version_key(each.version), str(each.python)))


def installed_lookalikes(toolkit: Toolkit) -> list[FoundToolkit]:
    """Every environment with the PyPI package that is mistaken for the toolkit."""
    name = re.compile(rf"{re.escape(toolkit.lookalike)}-(.+)\.dist-info")
    lookalikes = {
        FoundToolkit(match[1], python)
        for python, package in _packages(f"{toolkit.lookalike}-*.dist-info")
        if (match := name.fullmatch(package.name))
    }
    return sorted(lookalikes, key=lambda each: str(each.python))


def _packages(pattern: str) -> Iterator[tuple[Path, Path]]:
    """Interpreter and metadata folder of every installed package that matches."""
    for environment in _environments():
        python = environment / "bin" / "python"
        if python.exists():
            for package in environment.glob(f"lib/python3.*/site-packages/{pattern}"):
                yield python, package


def _wheel(package: Path) -> str | None:
    """The hash that pip records in direct_url.json (PEP 610); older versions do not."""
    try:
        record = read_json_object(package / "direct_url.json")
        return str(record["archive_info"]["hashes"]["sha256"])
    except (OSError, GemquantError, KeyError, TypeError):
        return None


def _environments() -> Iterator[Path]:
    folders = [Path(folder).expanduser() for folder in _FOLDERS]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
            folders.append(Path(os.environ[variable]).parent)
    for folder in (*folders, Path.cwd()):
        if folder.is_dir():
            yield from (each for each in sorted(folder.iterdir()) if each.is_dir())


def choose_toolkit(
    choice: str, toolkit: Toolkit, converting: tuple[ToolkitVersion, ...]
) -> Interpreter:
    """The named interpreter, or the one with the newest suitable release.

    converting: suitable releases. RuntimeMissingError with the next steps if there is none.
    """
    if choice != AUTO:
        interpreter = Interpreter.ask(choice, PACKAGES, flag="--toolkit")
        if interpreter.packages[toolkit.name] is None:
            raise RuntimeMissingError(
                f"--toolkit {choice}: {toolkit.name} is not installed in it{_stub(interpreter)}.",
                hint=next_steps(toolkit, converting, str(interpreter.path)),
            )
        return interpreter
    versions = {each.version for each in converting}
    suitable = [each for each in installed_toolkits() if each.version in versions]
    if not suitable:
        others = ", ".join(f"{e.version} ({e.python})" for e in installed_toolkits())
        unsuitable = f"; found only {others}, which cannot convert this" if others else ""
        raise RuntimeMissingError(
            f"{toolkit.name}: not found on this machine{unsuitable}.",
            hint=next_steps(toolkit, converting, None),
        )
    return Interpreter.ask(str(suitable[-1].python), PACKAGES)


def release_of(interpreter: Interpreter, toolkit: Toolkit) -> ToolkitVersion:
    """The release in an interpreter; UnsupportedError for an unknown one."""
    number = str(interpreter.packages[toolkit.name]).partition("+")[0]
    release = toolkit.version(number)
    if release is None:
        known = ", ".join(each.version for each in toolkit.versions)
        raise UnsupportedError(
            f"{toolkit.name} {number}: unknown release; known are {known}.",
            hint="Its functions may differ; install a known release.",
        )
    return release


def next_steps(toolkit: Toolkit, converting: tuple[ToolkitVersion, ...], python: str | None) -> str:
    """How to install the toolkit."""
    if not converting:
        return "No release converts this model with these options."
    release = converting[-1]
    wheel = f"{toolkit.name.replace('-', '_')}-{release.version}-*-linux_x86_64.whl"
    aside = f"not on PyPI, where {toolkit.lookalike} is another package"
    steps = [f"Download {wheel} from {toolkit.releases} ({aside})."]
    if python is None:
        python = "rkllm-venv/bin/python"
        steps.append(f"python{release.python[-1]} -m venv rkllm-venv")
    steps += [
        f"{python} -m pip install THE-WHEEL",
        f"Rerun with --toolkit {python}; or with --prepare-only, without a toolkit.",
    ]
    return "\n    ".join(steps)


def _stub(interpreter: Interpreter) -> str:
    stub = interpreter.packages["rkllm"]
    return "" if stub is None else f"; rkllm {stub} is another package, from PyPI"
