"""Calls rkllm-toolkit as a job says, and stops at the first status that is not 0.

Alone: PYTHON convert.py job.json, in the folder that `gemquant rkllm --prepare-only` has written.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

TASK = "converting"
PACKAGES = ("rkllm-toolkit", "torch", "transformers", "numpy")


def run(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load, build, export. job: ``imports``, ``calls``, ``file``. Returns what was passed on.

    1.0.1 prints "Error: …" and goes on: its ``build`` returns 0 after a load that failed.
    """
    report({"event": "start", "task": TASK, "total": len(job["calls"])})
    toolkit = importlib.import_module(job["imports"]).RKLLM()
    done = []
    for call in job["calls"]:
        name, arguments = call["function"], call["arguments"]
        report({"event": "note", "text": f"rkllm-toolkit: {name}"})
        function = getattr(toolkit, name)
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise RuntimeError(
                f"{name} of this rkllm-toolkit takes other parameters: {error}; it is not the "
                "release that it calls itself"
            ) from None
        returned = function(**arguments)
        if type(returned) is not int or returned != 0:
            raise RuntimeError(f"{name} returned {returned!r}, not 0")
        done.append({"function": name, "arguments": arguments, "returned": returned})
        report({"event": "advance", "task": TASK})
    file = Path(job["file"])
    if not file.is_file() or file.stat().st_size == 0:
        raise RuntimeError(f"every call returned 0, and {file.name} is not there")
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "calls": done,
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: found for name, found in versions.items() if found},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tell(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    os.chdir(job_file.parent)
    answer = run(json.loads(Path(job_file.name).read_text(encoding="utf-8")), _tell)
    json.dump(answer, sys.stdout, indent=2)
