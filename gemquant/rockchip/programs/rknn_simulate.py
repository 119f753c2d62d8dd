"""Runs decoder blocks in rknn-toolkit2's simulator of an NPU, in float16 and in int8.

A second opinion on int8: this toolkit quantizes norms and softmax too, and is not RKLLM's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

TASK = "simulating blocks"


def run(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Simulate blocks one by one. job: ``platform``, and ``blocks`` with the files of each.

    Returns for each block, by type, the signal-to-noise ratio in decibels of its output, and of
    what it adds to its input; None where that is not finite.
    """
    import numpy as np

    report({"event": "start", "task": TASK, "total": 2 * len(job["blocks"])})
    results = []
    for block in job["blocks"]:
        hidden, expected = np.load(block["input"]), np.load(block["expected"])
        ratios = {}
        for dtype in ("float16", "int8"):
            report({"event": "note", "text": f"rknn-toolkit2: layer {block['layer']} in {dtype}"})
            output = _simulated(job["platform"], block, hidden, int8=dtype == "int8")
            noise = float(np.square(output.reshape(expected.shape) - expected, dtype=float).sum())
            ratios[dtype] = {
                "output_db": _decibels(expected, noise),
                "update_db": _decibels(expected - hidden, noise),
            }
            report({"event": "advance", "task": TASK})
        results.append({"layer": block["layer"], "mask": block["mask"], **ratios})
    return {
        "blocks": results,
        "toolkit": metadata.version("rknn-toolkit2"),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def _simulated(platform: str, block: dict[str, Any], hidden: Any, *, int8: bool) -> Any:
    toolkit = importlib.import_module("rknn.api").RKNN(verbose=False)
    try:
        _check("config", toolkit.config(target_platform=platform))
        _check("load_onnx", toolkit.load_onnx(block["model"]))
        dataset = block["dataset"] if int8 else None
        _check("build", toolkit.build(do_quantization=int8, dataset=dataset))
        _check("init_runtime", toolkit.init_runtime())  # no target: the simulator
        outputs = toolkit.inference([hidden])
    finally:
        toolkit.release()
    if not outputs or outputs[0].size != hidden.size:
        raise RuntimeError("inference returned no output of the block's size")
    return outputs[0]


def _check(function: str, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"{function} returned {status!r}, not 0")


def _decibels(signal: Any, noise: float) -> float | None:
    """None if the noise is not finite: float16 overflowed."""
    import numpy as np

    if not np.isfinite(noise):
        return None
    power = float(np.square(signal, dtype=float).sum())
    return float(10 * np.log10(power / max(noise, sys.float_info.min)))
