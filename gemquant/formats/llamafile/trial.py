"""Running a finished llamafile once, as far as this machine can: does it start, and as what?"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30.0
_LONGEST_ANSWER = 4096


@dataclass(frozen=True)
class Trial:
    """What ``--version`` answered. version: its first line, or None; not_run: why not, or None."""

    version: str | None
    not_run: str | None


def ask_version(path: Path, *, seconds: float = SECONDS) -> Trial:
    """Run a llamafile with ``--version``, which loads no weights.

    A portable executable is a shell script to a system that does not know the format, so ``sh``
    is the second attempt.
    """
    command = [str(path), "--version"]
    try:
        return _run(command, seconds)
    except OSError as error:
        if error.errno != errno.ENOEXEC or os.name != "posix":
            return Trial(None, f"it does not start here: {error.strerror}")
    try:
        return _run(["/bin/sh", *command], seconds)
    except OSError as error:
        return Trial(None, f"it does not start here: {error.strerror}")


def _run(command: list[str], seconds: float) -> Trial:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Trial(None, f"no answer to --version within {seconds:g} s")
        said.seek(0)
        lines = said.read(_LONGEST_ANSWER).decode(errors="replace").split("\n")
    if done.returncode != 0:
        return Trial(None, f"--version ended with exit code {done.returncode}")
    first = next((line.strip() for line in lines if line.strip()), "")
    if not any(sign.isdigit() for sign in first):
        return Trial(None, f"--version answered {first[:60]!r}")
    return Trial(first, None)
