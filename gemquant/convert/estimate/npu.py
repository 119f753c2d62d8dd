"""What a vendor's toolkit would write for an NPU, estimated from what is known of its files."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from gemquant.convert.estimate.candidate import Candidate, table_size, weight_count
from gemquant.core.targets.device import NpuDtype
from gemquant.core.targets.target import Target
from gemquant.core.targets.toolkit import Toolkit, ToolkitVersion, load_toolkit
from gemquant.models.architecture import linear_shapes, tensor_shapes
from gemquant.models.structure import HEAD

SCALE_BYTES = 4
"""Of the scale of a row or a group: float32, as toolkit 1.0.1 stores it."""

EMBEDDING_BYTES = 2


def npu_candidates(
    target: Target, config: Mapping[str, Any], *, optimization_level: int = 0
) -> list[Candidate]:
    """One candidate for each quantized dtype of the NPU."""
    assert target.npu is not None
    toolkit = load_toolkit(target.npu.toolkit)
    return [
        _candidate(target, toolkit, dtype, config, optimization_level)
        for dtype in target.npu.dtypes
    ]


def stored_bytes(
    config: Mapping[str, Any], dtype: NpuDtype, version: ToolkitVersion | None = None
) -> int:
    """Estimate the size of a converted file: linears in the dtype, norms and scales in float32,
    the embedding in float16, a head of its own.
    """
    head_bits = version.head_bits if version is not None else None
    plain = sum(4 * prod(shape) for shape in tensor_shapes(config).values() if len(shape) == 1)
    head = table_size(config) * (head_bits or dtype.weight_bits) // 8
    return linear_bytes(config, dtype) + plain + head + EMBEDDING_BYTES * table_size(config)


def linear_bytes(config: Mapping[str, Any], dtype: NpuDtype) -> int:
    """Codes and scales of all decoder linears."""
    return sum(_matrix_bytes(shape, dtype) for shape in linear_shapes(config).values())


def group_problem(config: Mapping[str, Any], dtype: NpuDtype) -> str | None:
    """Say which linear the groups do not divide, if any.

    The documentation speaks of outputs where groups run along inputs; both must divide.
    """
    if dtype.group_size < 1:
        return None
    for name, (rows, columns) in linear_shapes(config).items():
        for what, size in (("outputs", rows), ("inputs", columns)):
            if size % dtype.group_size:
                linear = name.split(".", 3)[-1].removesuffix(".weight")
                return f"{linear} has {size} {what}, not a multiple of {dtype.group_size}"
    return None


def _matrix_bytes(shape: tuple[int, int], dtype: NpuDtype) -> int:
    rows, columns = shape
    scales = rows if dtype.group_size < 1 else rows * (columns // dtype.group_size)
    return rows * columns * dtype.weight_bits // 8 + scales * SCALE_BYTES


def _candidate(
    target: Target,
    toolkit: Toolkit,
    dtype: NpuDtype,
    config: Mapping[str, Any],
    optimization_level: int,
) -> Candidate:
    assert target.npu is not None
    command = f"gemquant rkllm MODEL --target {target.name} --quantized-dtype {dtype.name}"
    made = Candidate("rkllm", dtype.name, command)
    versions = toolkit.converting(target.npu.platform, config["model_type"], dtype.name)
    refused = group_problem(config, dtype)
    if not versions:
        refused = f"no version of {toolkit.name} converts {config['model_type']} so"
    if refused is not None:
        return Candidate(made.container, made.scheme, command, refused=refused)
    oldest = versions[0]
    # What the vendor's memory figures add up to: linears and a head in the dtype, no embedding.
    head_shape = tensor_shapes({**config, "tie_word_embeddings": False})[HEAD]
    resident = linear_bytes(config, dtype) + _matrix_bytes((head_shape[0], head_shape[1]), dtype)
    weights = weight_count(config)
    seconds = toolkit.conversion.seconds_per_million[optimization_level] * weights / 1e6
    return Candidate(
        made.container,
        made.scheme,
        command,
        runtimes=("RKLLM",),
        requires=(
            f"{toolkit.name}>={oldest.version}",
            "librkllmrt of the toolkit's version",
            f"NPU driver>={max(target.npu.driver, oldest.driver)}",
        ),
        file_bytes=stored_bytes(config, dtype),
        resident_bytes=resident,
        token_bytes=resident,
        size="estimate",
        conversion_bytes=int(toolkit.conversion.bytes_per_weight * weights),
        conversion_seconds=seconds,
    )
