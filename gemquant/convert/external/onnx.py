"""ONNX through onnxruntime-genai's model builder.

The builder rounds to nearest, in groups of input channels, head and embedding included where they
are tied; what it gets wrong for Gemma is put right in ``workers/programs/onnx_builder.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gemquant.convert.external.build import Build, Built
from gemquant.convert.external.onnx_options import ACTIVATIONS, GROUP_SIZES, OnnxOptions
from gemquant.core.progress import Progress
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError, UsageError
from gemquant.models.architecture import architecture_of
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool
from gemquant.runtimes.worker.run import PROGRAMS

PACKAGES = ("onnxruntime-genai", "onnxruntime", "onnx", "torch", "transformers")
INSTALL = "pip install 'gemquant[onnx]'"
PROVIDERS = ("cpu", "cuda")


class BuilderResult(BaseModel):
    """What the program answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...]
    versions: dict[str, str]


def precision(options: OnnxOptions) -> str:
    """The builder's name for a number of bits."""
    return {4: "int4", 8: "int8", 16: "bf16", 32: "fp32"}[options.bits]


def float_dtype(provider: str, options: OnnxOptions) -> str:
    """Type of everything that is not quantized."""
    return "float32" if provider == "cpu" or options.bits == 32 else "bfloat16"


def builder_options(options: OnnxOptions, provider: str) -> list[str]:
    """KEY=VALUE pairs, as the builder's own command line takes them."""
    pairs = ["windowed_kv_cache=false"]
    if options.quantized:
        pairs += [
            f"block_size={options.group_size}",
            f"is_symmetric={str(options.symmetric).lower()}",
        ]
        if not options.symmetric:
            # With zero points the builder wires a shared table's embedding to a tensor it dropped.
            pairs.append("shared_embeddings=false")
        if provider == "cuda":
            pairs.append("use_cuda_bf16=true")
        else:
            pairs.append(f"accuracy_level={ACTIVATIONS[options.activations]}")
    return pairs


def rope_facts(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the builder must be told of Gemma 3's two rotary tables; None for the others."""
    if not architecture_of(config).rope_by_layer_type:
        return None
    full = config["rope_parameters"]["full_attention"]
    return {
        "type": full.get("rope_type", "default"),
        "factor": float(full.get("factor", 1.0)),
        "global_theta": float(full["rope_theta"]),
        "local_theta": float(config["rope_parameters"]["sliding_attention"]["rope_theta"]),
    }


def problems(
    config: Mapping[str, Any],
    linears: Mapping[str, tuple[int, int]],
    options: OnnxOptions,
    provider: str,
) -> list[GemquantError]:
    """Everything that the builder or onnxruntime would get wrong or refuse, by name."""
    found: list[GemquantError] = []
    if options.bits == 16 and provider == "cpu":
        found.append(
            UnsupportedError(
                "--bits 16 for cpu: onnxruntime computes bfloat16 on GPUs only, and Gemma 2 and 3 "
                "overflow in float16.",
                hint="Use --bits 8 or 32, or --target cuda.",
            )
        )
    if options.bits == 32 and provider == "cuda":
        found.append(
            UnsupportedError(
                "--bits 32 for cuda: its attention has no float32 kernel there.",
                hint="Use --bits 16, or --target cpu.",
            )
        )
    found += _shapes(config, linears, options) + _rope(config)
    return found


def _shapes(
    config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]], options: OnnxOptions
) -> list[GemquantError]:
    found: list[GemquantError] = []
    vocabulary = config["vocab_size"]
    alike = sorted({name.split(".")[-2] for name, (out, _) in linears.items() if out == vocabulary})
    if alike:
        found.append(
            UnsupportedError(
                f"{vocabulary} tokens in the vocabulary, as many as outputs of {', '.join(alike)}: "
                "the builder tells the head by that number and would wire another layer as it.",
                hint="No option helps; use another container, such as compressed-tensors.",
            )
        )
    widths = sorted({columns for _, columns in linears.values()} | {config["hidden_size"]})
    odd = [width for width in widths if options.quantized and width % options.group_size]
    if odd:
        fits = [str(n) for n in GROUP_SIZES if all(width % n == 0 for width in widths)]
        found.append(
            UnsupportedError(
                f"--group-size {options.group_size}: does not divide "
                f"{' or '.join(map(str, odd))} input channels.",
                hint=f"Use --group-size {' or '.join(fits)}." if fits else "Use --bits 32.",
            )
        )
    return found


def _rope(config: Mapping[str, Any]) -> list[GemquantError]:
    rope = config["rope_parameters"]
    tables = {"": rope} if "rope_theta" in rope else {f" of {kind}": rope[kind] for kind in rope}
    allowed = {" of full_attention": ("default", "linear")}
    return [
        UnsupportedError(
            f"rotary scaling {kind!r}{where}: not tested with the builder for a "
            f"{config['model_type']}.",
            hint="Tested are: none at all, and linear scaling of Gemma 3's full attention.",
        )
        for where, table in tables.items()
        if (kind := table.get("rope_type", "default")) not in allowed.get(where, ("default",))
    ]


def missing(interpreter: Interpreter, python: str | None) -> list[GemquantError]:
    """Say what to install, and where."""
    absent = interpreter.missing()
    if not absent:
        return []
    where = "in this environment" if python is None else f"for {python}"
    command = INSTALL if python is None else f"{python} -m pip install {' '.join(absent)}"
    return [
        RuntimeMissingError(
            f"{', '.join(absent)}: not installed {where}; gemquant onnx runs the model builder of "
            "onnxruntime-genai.",
            hint=f"{command}; or name a Python that has them with --python PATH",
        )
    ]


def provider_of(target: str) -> str:
    """onnxruntime's execution provider for a target."""
    if target not in PROVIDERS:
        raise UsageError(
            f"--target {target}: gemquant onnx makes models for {' and '.join(PROVIDERS)}.",
            hint="onnxruntime on Apple silicon runs those for cpu.",
        )
    return target


def builder(
    config: Mapping[str, Any],
    options: OnnxOptions,
    provider: str,
    *,
    interpreter: Interpreter,
    limits: Limits,
    threads: int,
) -> Build:
    """The step that runs the builder on a plain folder."""
    tool = Tool("onnxruntime-genai's model builder", PROGRAMS / "onnx_builder.py")

    def build(plain: Path, scratch: Path, progress: Progress) -> Built:
        from gemquant.formats.transformers_config import runtime_config

        job = {
            "model": str(plain),
            "out": str(scratch / "onnx"),
            "precision": precision(options),
            "provider": provider,
            "options": builder_options(options, provider),
            "rope": rope_facts(config),
        }
        result = run_tool(
            tool,
            job,
            BuilderResult,
            interpreter=interpreter,
            limits=limits,
            folder=scratch,
            threads=threads,
            progress=progress,
        )
        dtype = float_dtype(provider, options)
        written = runtime_config(config, dtype, quantization=None)
        return Built(scratch / "onnx", result.files, result.versions, written)

    return build
