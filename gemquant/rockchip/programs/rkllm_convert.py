"""Calls rkllm-toolkit as a job describes, and stops at the first status that is not 0.

Standalone: PYTHON convert.py in a folder of `gemquant rkllm --prepare-only`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

JOB, ANSWER = "job.json", "converted.json"
TASK = "converting"
UNREAD = 3
PACKAGES = ("rkllm-toolkit", "torch", "transformers", "numpy")


def run(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load, build, export; return the calls. job: ``imports``, ``calls``, ``file``, and for a
    simulation ``simulation``.

    1.0.1 prints "Error: …" and continues: its ``build`` returns 0 after a failed load.
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
                f"{name} of this rkllm-toolkit has other parameters: {error}; it is not the "
                "release that it claims to be"
            ) from None
        returned = function(**arguments)
        if type(returned) is not int or returned != 0:
            raise RuntimeError(f"{name} returned {returned!r}, not 0")
        done.append({"function": name, "arguments": arguments, "returned": returned})
        report({"event": "advance", "task": TASK})
        if name == "build" and "simulation" in job:
            _simulate(toolkit, job["simulation"], report)
    file = Path(job["file"])
    if not file.is_file() or file.stat().st_size == 0:
        raise RuntimeError(f"every call returned 0, and {file.name} is not there")
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "calls": done,
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: found for name, found in versions.items() if found},
    }


def _simulate(toolkit: Any, job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Predict windows after build, as documented; write logits in files of some positions each.

    Waits while UNREAD files exist: the reader removes them.
    """
    import numpy as np
    import torch

    folder, positions = Path(job["folder"]), job["positions"]
    folder.mkdir()
    pieces = sum(-(-(len(window) - 1) // positions) for window in job["windows"])
    report({"event": "start", "task": "simulating", "total": pieces})
    predict = _predictor(toolkit, job["way"])
    number = 0
    for window in job["windows"]:
        with torch.no_grad():
            logits = predict(torch.tensor([window]))
        if logits is None or tuple(logits.shape[:2]) != (1, len(window)):
            raise RuntimeError(f"the simulator gave {getattr(logits, 'shape', None)} for a window")
        for first in range(0, len(window) - 1, positions):
            last = min(first + positions, len(window) - 1)
            while len(list(folder.glob("*.npy"))) >= UNREAD:
                time.sleep(0.02)
            piece = logits[0, first:last].detach().to("cpu", torch.float32).numpy()
            with (folder / "unfinished").open("wb") as file:
                np.save(file, piece)
            (folder / "unfinished").replace(folder / f"{number}.npy")
            number += 1
            report({"event": "advance", "task": "simulating"})


def _predictor(toolkit: Any, way: str) -> Callable[[Any], Any]:
    """Logits (1, tokens, vocabulary) of ids (1, tokens)."""
    if way == "get_logits":
        return lambda ids: toolkit.get_logits({"input_ids": ids})
    # 1.0.1 has no public function; its evaluation of data sets begins with this.
    base = toolkit.base
    kind = importlib.import_module("rkllm.base.eval").Evaluator
    evaluator = kind("", base.tokenizer, base.w_bit, base.a_bit, base.model, base.hybrid_layer)
    model = evaluator.fake_quant(copy.deepcopy(base.model))  # the original is exported later
    return lambda ids: model(ids).logits


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _print_event(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")


def main(folder: Path) -> None:
    """Convert what a folder holds; leave the file and converted.json, which sealing it needs."""
    os.chdir(folder)
    job = json.loads(Path(JOB).read_text(encoding="utf-8"))
    toolkit, release = job["toolkit"]
    try:
        importlib.import_module(job["imports"]).RKLLM  # noqa: B018 - another rkllm has none
    except (ImportError, AttributeError) as error:
        wheel = f"{toolkit.replace('-', '_')}-{release}-*.whl"
        sys.exit(
            f"{sys.executable} has no {toolkit} ({error}): install {wheel} from "
            f"{job['releases']} (rkllm on PyPI is something else)."
        )
    try:
        answer = run(job, _print_event)
    except RuntimeError as error:
        sys.exit(f"{toolkit}: {error}")
    Path(ANSWER).write_text(json.dumps(answer, indent=2), encoding="utf-8")
    sys.stdout.write(
        f"{folder / job['file']} is converted. Make it an artifact where gemquant is installed:\n"
        f"  gemquant rkllm {folder} --converted {folder / job['file']}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve().parent)
