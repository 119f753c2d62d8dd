"""Find rkllm-toolkit in this machine's Python environments, and choose a release."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.targets import Toolkit, ToolkitVersion, version_key
from gemquant.core.untrusted import user_path
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.rockchip.options import AUTO
from gemquant.runtimes.worker import Interpreter

PACKAGES = ("rkllm-toolkit", "rkllm", "torch", "transformers", "numpy")
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


def installed(package: str) -> list[FoundToolkit]:
    """Every environment with a package, in this folder and those of conda and pyenv."""
    name = re.compile(rf"{package.replace('-', '_')}-(\d+(?:\.\d+)*)\S*\.dist-info")
    found = {
        FoundToolkit(match[1], environment / "bin" / "python", _wheel(folder))
        for environment in _environments()
        if (environment / "bin" / "python").exists()
        for folder in environment.glob("lib/python3.*/site-packages/*.dist-info")
        if (match := name.fullmatch(folder.name))
    }
    return sorted(found, key=lambda each: (version_key(each.version), str(each.python)))


def _wheel(package: Path) -> str | None:
    """The hash that pip records in direct_url.json (PEP 610); older versions do not."""
    try:
        record = read_json_object(package / "direct_url.json")
        return str(record["archive_info"]["hashes"]["sha256"])
    except (OSError, GemquantError, KeyError, TypeError):
        return None


def _environments() -> Iterator[Path]:
    folders = [user_path(folder) for folder in _FOLDERS]
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
            stub = interpreter.packages["rkllm"]
            other = "" if stub is None else f"; rkllm {stub} is another package, from PyPI"
            raise RuntimeMissingError(
                f"--toolkit {choice}: {toolkit.name} is not installed in it{other}.",
                hint=next_steps(toolkit, converting, str(interpreter.path)),
            )
        return interpreter
    versions = {each.version for each in converting}
    found = installed(toolkit.name)
    suitable = [each for each in found if each.version in versions]
    if not suitable:
        others = ", ".join(f"{each.version} ({each.python})" for each in found)
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
