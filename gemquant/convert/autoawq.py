"""AutoAWQ 0.2.9, archived by its authors, in a separate environment.

Its algorithm runs unchanged; its GEMM layout is read back, measured and finalized here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemquant.convert.external import ExternalTool
from gemquant.convert.external_options import AutoAwqOptions, ExternalRequest
from gemquant.convert.plan import linear_weights
from gemquant.convert.prepare import OpenedModel
from gemquant.errors import (
    Attempt,
    GemquantError,
    RuntimeMissingError,
    UnsupportedError,
    UsageError,
    refuse,
)
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.architecture import ARCHITECTURES, architecture_of
from gemquant.quantizers.options import indivisible
from gemquant.runtimes.worker import PROGRAMS, Interpreter, Tool

VERSION = "0.2.9"
PACKAGES = ("autoawq", "torch", "transformers", "triton")
CONTAINER = "awq-gemm"
CLIPPED_ROWS = 64
PRODUCTS_PER_WEIGHT = 115.0
"""And token, since it multiplies all of them for every scale that it tries. Measured: a Gemma 2 of
270 million weights, 8 windows of 512 tokens, 472 s of two AVX2 cores."""
DTYPE = "bfloat16"
"""What the plain folder stores, and so what AutoAWQ leaves unquantized."""

ENVIRONMENT = (
    f"python3 -m venv awq-venv && awq-venv/bin/pip install torch==2.13.0 transformers==5.23.0 "
    f"autoawq=={VERSION}, then --python awq-venv/bin/python"
)


def interpreter_problems(interpreter: Interpreter) -> Iterator[GemquantError]:
    """What the environment lacks, or has in another version."""
    found = interpreter.packages["autoawq"]
    if absent := interpreter.missing():
        yield RuntimeMissingError(
            f"{', '.join(absent)}: not installed for {interpreter.path}.",
            hint=f"Make an environment for it: {ENVIRONMENT}",
        )
    elif found != VERSION:
        yield UnsupportedError(
            f"AutoAWQ {found} at {interpreter.path}: {VERSION} is the one that was tested.",
            hint=f"{interpreter.path} -m pip install autoawq=={VERSION}",
        )


def _named(python: str | None) -> str:
    """AutoAWQ needs another environment: its pins conflict with this one's."""
    if python is None:
        raise UsageError(
            "--engine autoawq: needs --python, an environment that has AutoAWQ.",
            hint=f"Make one: {ENVIRONMENT}",
        )
    return python


def problems(
    config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]], options: AutoAwqOptions
) -> Iterator[GemquantError]:
    """What AutoAWQ would refuse."""
    if not architecture_of(config).autoawq:
        supported = " and ".join(each.name for each in ARCHITECTURES.values() if each.autoawq)
        yield UnsupportedError(
            f"{config['model_type']}: AutoAWQ {VERSION} quantizes {supported} only.",
            hint="Leave --engine out: gemquant's own awq quantizes every Gemma.",
        )
    # Its search for ranges divides outputs into rows; q and k are never clipped.
    odd = {
        name.split(".")[-2]: out
        for name, (out, _) in linears.items()
        if out % CLIPPED_ROWS and not name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    if options.clip and odd:
        listed = ", ".join(f"{name} ({out})" for name, out in odd.items())
        yield UnsupportedError(
            f"outputs of {listed}: AutoAWQ searches ranges for {CLIPPED_ROWS} rows at a time.",
            hint="Use --no-clip.",
        )
    yield from indivisible(linears, options.group_size, "")


def check(request: ExternalRequest, model: OpenedModel) -> Attempt[ExternalTool]:
    """Check environment, model and options; AutoAWQ set up for this model."""
    options, tool, config = request.options, request.tool, model.checkpoint.config
    assert isinstance(options, AutoAwqOptions)
    interpreter = model.attempt(lambda: Interpreter.ask(_named(tool.python), PACKAGES))
    model.attempt(lambda: refuse(interpreter_problems(interpreter.value)))
    model += problems(config, linear_weights(model.checkpoint), options)
    calibration = model.calibration()
    quantization = {
        "quant_method": "awq",
        "bits": options.bits,
        "group_size": options.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    return model.attempt(
        lambda: ExternalTool(
            name="autoawq",
            label=f"w{options.bits}-g{options.group_size}",
            container=CONTAINER,
            worker=Tool("AutoAWQ", PROGRAMS / "autoawq.py"),
            interpreter=interpreter.value,
            dtype=DTYPE,
            float_dtype=DTYPE,
            job={
                "group_size": options.group_size,
                "clip": options.clip,
                "threads": request.threads,
            },
            config=runtime_config(config, DTYPE, quantization),
            products_per_weight=PRODUCTS_PER_WEIGHT,
            calibration=calibration.value,
            # Versions of torch and so on are those of its environment, not of this one.
            library_names={name: f"{name} (AutoAWQ's)" for name in PACKAGES if name != "autoawq"},
        )
    )
