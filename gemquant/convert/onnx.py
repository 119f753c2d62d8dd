"""ONNX through onnxruntime-genai's model builder.

The builder rounds to nearest, in groups of input channels, head and embedding included where they
are tied; what it gets wrong for Gemma is put right in ``runtimes/programs/onnx_builder.py``. Codes
and scales of matrices on a 4-bit grid are then written over the builder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemquant.convert.external import ExternalTool, plain_dtype
from gemquant.convert.external_options import (
    ACTIVATIONS,
    ONNX_GROUP_SIZES,
    ExternalRequest,
    OnnxOptions,
)
from gemquant.convert.plan import linear_weights
from gemquant.convert.prepare import OpenedModel
from gemquant.core.artifact import GridRecord, grid_record
from gemquant.core.protocols import Container, GridShare, GridUse
from gemquant.errors import (
    Attempt,
    GemquantError,
    RuntimeMissingError,
    UnsupportedError,
    UsageError,
    refuse,
)
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.onnx import Onnx
from gemquant.models.architecture import architecture_of
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.quantizers.qat import carried_weight, grid_use, use_notes
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
    use = model.attempt(partial(_grid_use, options, model))

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
            notes=use_notes(use.value, _wants(options, model.checkpoint), _ON_GRID),
            complete=partial(_carry_over, checkpoint=model.checkpoint, use=use.value),
            products_per_weight=PRODUCTS_PER_WEIGHT,
        )

    return model.attempt(tool)


# ---------------------------------------------------------------- matrices on a 4-bit grid

_ON_GRID = "--group-size 32"
_VALUES_AT_ONCE = 1 << 22


def _wants(options: OnnxOptions, checkpoint: Checkpoint) -> Callable[[str, GridShare], bool]:
    """Which matrices the builder quantizes: linears, and the head, which may be the embedding."""
    tied = checkpoint.config["tie_word_embeddings"]
    quantized = {*linear_weights(checkpoint), EMBEDDING if tied else HEAD}
    return lambda name, _share: options.quantized and name in quantized


def _grid_use(options: OnnxOptions, model: OpenedModel) -> GridUse:
    wanted = _wants(options, model.checkpoint)
    return grid_use(
        options.qat,
        model.grids,
        holds=lambda name, s: wanted(name, s) and options.group_size in s.group_sizes,
        wanted=wanted,
        instead=_ON_GRID,
    )


def _carry_over(folder: Path, *, checkpoint: Checkpoint, use: GridUse) -> GridRecord | None:
    """Write the grid's codes and scales over the builder's, which stay in groups off the grid."""
    if not use.surveyed:
        return None
    weights = Onnx().open(folder)
    scale_dtype = torch.float32
    for name, share in use.carried.items():
        # The builder may part a tied head from its embedding, and quantizes the head alone.
        stored = HEAD if name == EMBEDDING and HEAD in weights.layout else name
        rows, columns = weights.shape(stored)
        step = max(1, _VALUES_AT_ONCE // columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            built = weights.quantized(stored, start, stop)
            scale_dtype = built.scales.dtype
            weight = checkpoint.rows(name, start, stop, torch.float32)
            container = Container(scale_dtype, scale_dtype)
            off_grid = partial(weights.quantized, stored, start, stop)
            carried = carried_weight(weight, built.scheme, container, share, off_grid)
            weights.overwrite(stored, start, carried)
    return grid_record(use, str(scale_dtype).removeprefix("torch."))
