"""ONNX through onnxruntime-genai's model builder.

The builder rounds to nearest, in groups of input channels, head and embedding included where they
are tied; what it gets wrong for Gemma is put right in ``runtimes/programs/onnx_builder.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemquant.convert.external import ExternalTool, plain_dtype
from gemquant.convert.external_options import (
    ACTIVATIONS,
    ONNX_GROUP_SIZES,
    ExternalRequest,
    OnnxOptions,
)
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
from gemquant.models.architecture import architecture_of
from gemquant.runtimes.worker import PROGRAMS, Interpreter, Tool

PACKAGES = ("onnxruntime-genai", "onnxruntime", "onnx", "torch", "transformers")
INSTALL = "pip install 'gemquant[onnx]'"
CONTAINER = "onnx"
PROVIDERS = ("cpu", "cuda")


PRODUCTS_PER_WEIGHT = 8_000.0
"""Measured: Gemma 3 270M in 4 bits, 20 s of one AVX-512 core."""


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
    """Facts on Gemma 3's two rotary tables that the builder needs; None for the others."""
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
) -> Iterator[GemquantError]:
    """Everything that the builder or onnxruntime would get wrong or refuse, by name."""
    architecture = architecture_of(config)
    if architecture.no_onnx is not None:
        yield UnsupportedError(
            f"no model builder for a {architecture.name}: {architecture.no_onnx}.",
            hint="Use another container: gemquant gguf MODEL, or gemquant awq MODEL.",
        )
        return
    if options.bits == 16 and provider == "cpu":
        yield UnsupportedError(
            "--bits 16 for cpu: onnxruntime computes bfloat16 on GPUs only, and Gemma 2 and 3 "
            "overflow in float16.",
            hint="Use --bits 8 or 32, or --target cuda.",
        )
    if options.bits == 32 and provider == "cuda":
        yield UnsupportedError(
            "--bits 32 for cuda: its attention has no float32 kernel there.",
            hint="Use --bits 16, or --target cpu.",
        )
    vocabulary = config["vocab_size"]
    alike = sorted({name.split(".")[-2] for name, (out, _) in linears.items() if out == vocabulary})
    if alike:
        yield UnsupportedError(
            f"{vocabulary} tokens in the vocabulary, as many as outputs of {', '.join(alike)}: "
            "the builder tells the head by that number and would wire another layer as it.",
            hint="No option helps; use another container, such as compressed-tensors.",
        )
    widths = sorted({columns for _, columns in linears.values()} | {config["hidden_size"]})
    odd = [width for width in widths if options.quantized and width % options.group_size]
    if odd:
        fits = [str(n) for n in ONNX_GROUP_SIZES if all(width % n == 0 for width in widths)]
        yield UnsupportedError(
            f"--group-size {options.group_size}: does not divide "
            f"{' or '.join(map(str, odd))} input channels.",
            hint=f"Use --group-size {' or '.join(fits)}." if fits else "Use --bits 32.",
        )
    rope = config["rope_parameters"]
    tables = {"": rope} if "rope_theta" in rope else {f" of {kind}": rope[kind] for kind in rope}
    for where, table in tables.items():
        kind = table.get("rope_type", "default")
        if kind != "default" and (where, kind) != (" of full_attention", "linear"):
            yield UnsupportedError(
                f"rotary scaling {kind!r}{where}: not tested with the builder for a "
                f"{config['model_type']}.",
                hint="Tested are: none at all, and linear scaling of Gemma 3's full attention.",
            )


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


def check(request: ExternalRequest, model: OpenedModel) -> Attempt[ExternalTool]:
    """Check environment, model and options; the builder set up for this model."""
    from gemquant.formats.transformers_config import runtime_config

    options, config = request.options, model.checkpoint.config
    assert isinstance(options, OnnxOptions)
    interpreter = model.attempt(lambda: Interpreter.ask(request.tool.python, PACKAGES))
    model.attempt(lambda: refuse(missing(interpreter.value, request.tool.python)))
    provider = model.attempt(lambda: provider_of(request.target.name))
    linears = linear_weights(model.checkpoint)
    model.attempt(lambda: refuse(problems(config, linears, options, provider.value)))

    def tool() -> ExternalTool:
        dtype = float_dtype(provider.value, options)
        return ExternalTool(
            name=CONTAINER,
            label=f"w{options.bits}" + (f"-g{options.group_size}" if options.quantized else ""),
            container=CONTAINER,
            worker=Tool("onnxruntime-genai's model builder", PROGRAMS / "onnx_builder.py"),
            interpreter=interpreter.value,
            dtype=plain_dtype(model.checkpoint),
            float_dtype=dtype,
            job={
                "precision": precision(options),
                "provider": provider.value,
                "options": builder_options(options, provider.value),
                "rope": rope_facts(config),
            },
            config=runtime_config(config, dtype, quantization=None),
            products_per_weight=PRODUCTS_PER_WEIGHT,
        )

    return model.attempt(tool)
