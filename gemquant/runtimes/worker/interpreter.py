"""Another Python interpreter: its version and installed packages, checked before it runs a tool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gemquant.errors import RuntimeMissingError

_SECONDS_TO_ANSWER = 60
_QUESTION = """\
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
json.dump({"python": "%d.%d.%d" % sys.version_info[:3],
           "packages": {name: version(name) for name in sys.argv[1:]}}, sys.stdout)
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter. packages: requested packages and their versions, None if missing."""

    path: Path
    python: str
    packages: Mapping[str, str | None]

    @classmethod
    def ask(cls, python: str | None, packages: Sequence[str]) -> Self:
        """Ask an interpreter for versions, without importing the packages.

        python: path or name; None for our own. RuntimeMissingError if it does not answer.
        """
        # An absolute path with its links: a virtual environment's Python is one.
        program = sys.executable if python is None else shutil.which(Path(python).expanduser())
        if program is None:
            raise RuntimeMissingError(
                f"--python {python}: no such program.",
                hint="Name the Python of an environment, as in --python ./tool-venv/bin/python",
            )
        try:
            answer = subprocess.run(
                [program, "-I", "-c", _QUESTION, *packages],
                capture_output=True,
                text=True,
                check=True,
                timeout=_SECONDS_TO_ANSWER,
                stdin=subprocess.DEVNULL,
            )
            facts = json.loads(answer.stdout)
            path = Path(os.path.abspath(program))  # noqa: PTH100 (resolve() would leave the venv)
            return cls(path, str(facts["python"]), dict(facts["packages"]))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            raise RuntimeMissingError(
                f"--python {program}: does not answer like a Python ({type(error).__name__}).",
                hint=f"Try: {program} --version",
            ) from None

    def missing(self) -> list[str]:
        """Names of the packages that are not installed in it."""
        return [name for name, version in self.packages.items() if version is None]

    def words(self) -> str:
        """Versions, for a manifest: ``autoawq 0.2.9, torch 2.13.0``."""
        return ", ".join(f"{n} {v.partition('+')[0]}" for n, v in self.packages.items() if v)
