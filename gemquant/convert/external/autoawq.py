"""AutoAWQ 0.2.9, archived by its authors, in an environment of its own.

Its algorithm is not ours and is not changed; what it writes is its own GEMM layout, which is read
back, measured and sealed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gemquant.calibration.windows import TokenWindows
from gemquant.convert.external.autoawq_options import AutoAwqOptions
from gemquant.convert.external.build import Build, Built
from gemquant.core.progress import Progress
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError, UsageError
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.architecture import ARCHITECTURES, architecture_of
from gemquant.quantizers.options import indivisible
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool
from gemquant.runtimes.worker.run import PROGRAMS

VERSION = "0.2.9"
PACKAGES = ("autoawq", "torch", "transformers", "triton")
CLIPPED_ROWS = 64
DTYPE = "bfloat16"
"""What the plain folder stores, and so what AutoAWQ leaves unquantized."""

ENVIRONMENT = (
    f"python3 -m venv awq-venv && awq-venv/bin/pip install torch==2.13.0 transformers==5.23.0 "
    f"autoawq=={VERSION}, then --python awq-venv/bin/python"
)


class AutoAwqResult(BaseModel):
    """What the program answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...]
    versions: dict[str, str]


def interpreter_problems(interpreter: Interpreter) -> list[GemquantError]:
    """What the environment lacks, or has in another version."""
    absent = interpreter.missing()
    if absent:
        return [
            RuntimeMissingError(
                f"{', '.join(absent)}: not installed for {interpreter.path}.",
                hint=f"Make an environment for it: {ENVIRONMENT}",
            )
        ]
    found = interpreter.packages["autoawq"]
    if found != VERSION:
        return [
            UnsupportedError(
                f"AutoAWQ {found} at {interpreter.path}: {VERSION} is the one that was tested.",
                hint=f"{interpreter.path} -m pip install autoawq=={VERSION}",
            )
        ]
    return []


def python_problems(python: str | None) -> list[GemquantError]:
    """AutoAWQ is never looked for in our own environment: its pins are not ours."""
    if python is not None:
        return []
    return [
        UsageError(
            "--engine autoawq: needs --python, an environment that has AutoAWQ.",
            hint=f"Make one: {ENVIRONMENT}",
        )
    ]


def problems(
    config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]], options: AutoAwqOptions
) -> list[GemquantError]:
    """What AutoAWQ would refuse, before it is asked."""
    found: list[GemquantError] = []
    if not architecture_of(config).autoawq:
        supported = " and ".join(each.name for each in ARCHITECTURES.values() if each.autoawq)
        found.append(
            UnsupportedError(
                f"{config['model_type']}: AutoAWQ {VERSION} quantizes {supported} only.",
                hint="Leave --engine out: gemquant's own awq quantizes every Gemma.",
            )
        )
    return [*found, *_unclippable(linears, options), *indivisible(linears, options.group_size, "")]


def _unclippable(
    linears: Mapping[str, tuple[int, int]], options: AutoAwqOptions
) -> list[GemquantError]:
    """Layers whose outputs its search for ranges does not divide; q and k are never clipped."""
    odd = {
        name.split(".")[-2]: out
        for name, (out, _) in linears.items()
        if out % CLIPPED_ROWS and not name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    if not options.clip or not odd:
        return []
    told = ", ".join(f"{name} ({out})" for name, out in odd.items())
    return [
        UnsupportedError(
            f"outputs of {told}: AutoAWQ searches ranges for {CLIPPED_ROWS} rows at a time.",
            hint="Use --no-clip.",
        )
    ]


def quantizer(
    config: Mapping[str, Any],
    options: AutoAwqOptions,
    calibration: TokenWindows,
    *,
    interpreter: Interpreter,
    limits: Limits,
    threads: int,
) -> Build:
    """The step that runs AutoAWQ on a plain folder."""
    tool = Tool("AutoAWQ", PROGRAMS / "autoawq.py")

    def build(plain: Path, scratch: Path, progress: Progress) -> Built:
        windows = scratch / "windows.json"
        windows.write_text(json.dumps(calibration.ids.tolist()), encoding="utf-8")
        job = {
            "model": str(plain),
            "out": str(scratch / "awq"),
            "windows": str(windows),
            "group_size": options.group_size,
            "clip": options.clip,
            "threads": threads,
        }
        result = run_tool(
            tool,
            job,
            AutoAwqResult,
            interpreter=interpreter,
            limits=limits,
            folder=scratch,
            threads=threads,
            progress=progress,
        )
        quantization = {
            "quant_method": "awq",
            "bits": options.bits,
            "group_size": options.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        }
        # Versions of torch and transformers are those of its environment, not ours.
        versions = {
            name if name == "autoawq" else f"{name} (AutoAWQ's)": version
            for name, version in result.versions.items()
        }
        written = runtime_config(config, DTYPE, quantization)
        return Built(scratch / "awq", result.files, versions, written)

    return build
