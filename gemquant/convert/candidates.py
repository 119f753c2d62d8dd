"""Ways to store a model for a device: containers, schemes and sizes, from headers alone.

Sizes of containers come from our exporters; every other figure names what it was derived from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from gemquant.convert.plugins import exporter
from gemquant.core.protocols import ArtifactHeader, Exporter, PlainSpec, QuantizedSpec
from gemquant.core.recipe import DEFAULT_TARGET
from gemquant.core.scheme import BLOCK_FORMATS, INTEGER, Scheme, label
from gemquant.core.targets import (
    Npu,
    NpuDtype,
    Runtime,
    Schemes,
    Target,
    TargetContainer,
    Toolkit,
    ToolkitVersion,
    load_toolkit,
)
from gemquant.core.weights import AffineScheme, CodebookName, CodebookScheme, RowwiseScheme
from gemquant.errors import GemquantError
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.types import TypeRequest, choose_types
from gemquant.models.architecture import linear_shapes, tensor_shapes
from gemquant.models.experts import loading_kind
from gemquant.models.structure import EMBEDDING, HEAD


@dataclass(frozen=True)
class Candidate:
    """container, scheme: as commands name them. command: what makes it.

    file_bytes: of all weight files, exact or estimated as ``size`` says. resident_bytes: of weights
    in memory while it runs. token_bytes: read for every token. requires: versions of what converts
    it and of what runs it. conversion_bytes, conversion_seconds: estimates; None where not known.
    refused: why the container cannot hold this model so, and then there are no sizes.
    """

    container: str
    scheme: str
    command: str
    runtimes: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    file_bytes: int = 0
    resident_bytes: int = 0
    token_bytes: int = 0
    size: Literal["exact", "estimate"] = "exact"
    conversion_bytes: int | None = None
    conversion_seconds: float | None = None
    refused: str | None = None


def weight_count(config: Mapping[str, Any]) -> int:
    """Number of weights; a tied head counts once."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def table_size(config: Mapping[str, Any]) -> int:
    """Values of the embedding."""
    return prod(tensor_shapes(config)[EMBEDDING])


# ---------------------------------------------------------------- containers


GGUF = "gguf"
FOREIGN = ("onnx",)
UNPACKED_BYTES = 2
"""Of a weight in bfloat16, where a runtime decompresses."""
LLM_INT8_THRESHOLD = 6.0
CODEBOOKS: Mapping[str, CodebookName] = {"nf4": "nf4", "fp4": "fp4"}


def container_candidates(target: Target, config: Mapping[str, Any]) -> list[Candidate]:
    """Every scheme of every container, as ``gemquant rtn`` and its like would store it."""
    made: list[Candidate] = []
    for container in target.containers:
        if container.exporter in FOREIGN:
            reason = "what another program writes is not predicted"
            made.append(Candidate(container.exporter, "any scheme", "", refused=reason))
        elif container.exporter == GGUF:
            made += _gguf(container, config)
        else:
            made += _plain(target, container, config)
            made += _quantized(target, container, config)
    return made


def _loading(
    container: TargetContainer, generation: str, schemes: list[Scheme]
) -> Sequence[Runtime]:
    """Runtimes that load it, those first that keep the weights packed."""
    loading = [r for r in container.runtimes if r.loads(generation, schemes)]
    return sorted(loading, key=lambda runtime: runtime.decompresses)


# ---------------------------------------------------------------- our safetensors containers


def _quantized(
    target: Target, container: TargetContainer, config: Mapping[str, Any]
) -> Iterator[Candidate]:
    generation = loading_kind(config["model_type"], linear_shapes(config))
    for scheme in _schemes(container, generation):
        loading = _loading(container, generation, [scheme])
        command = _quantizer(scheme)
        if target.name != DEFAULT_TARGET:
            command += f" --target {target.name}"
        if target.preferred(generation, [scheme]) != container.exporter:
            command += f" --exporter {container.exporter}"
        made = exporter(container.exporter)
        header = _header(made, config, scheme)
        problems = made.problems(header)
        if problems:
            reason = problems[0].message
            yield Candidate(container.exporter, _named(scheme), command, refused=reason)
            continue
        yield _sized(made, header, container.exporter, _named(scheme), command, loading)


def _plain(
    target: Target, container: TargetContainer, config: Mapping[str, Any]
) -> Iterator[Candidate]:
    dtypes = dict.fromkeys(dtype for r in container.runtimes if not r.schemes for dtype in r.dtypes)
    for dtype in dtypes:
        loading = [
            r for r in container.runtimes if r.loads(config["model_type"], []) and dtype in r.dtypes
        ]
        if not loading:
            continue
        made = exporter(container.exporter, {"dtype": dtype, "shard_size": "5GB"})
        command = f"gemquant cast MODEL --dtype {dtype}"
        if target.name != DEFAULT_TARGET:
            command += f" --target {target.name}"
        header = _header(made, config, None)
        yield _sized(made, header, container.exporter, dtype, command, loading)


def _sized(
    made: Exporter,
    header: ArtifactHeader,
    container: str,
    scheme: str,
    command: str,
    loading: Sequence[Runtime],
) -> Candidate:
    config = header.config
    size = resident = sum(made.file_sizes(header).values())
    if loading[0].decompresses:
        resident = UNPACKED_BYTES * weight_count(config)
    unread = 0
    if not config["tie_word_embeddings"]:
        unread = table_size(config) * made.container(config).float_dtype.itemsize
    return Candidate(
        container,
        scheme,
        command,
        tuple(runtime.name for runtime in loading),
        tuple(loading[0].requires),
        file_bytes=size,
        resident_bytes=resident,
        token_bytes=resident - unread,
    )


def _header(made: Exporter, config: Mapping[str, Any], scheme: Scheme | None) -> ArtifactHeader:
    float_dtype = made.container(config).float_dtype
    linears = linear_shapes(config)
    layout = {
        name: QuantizedSpec(linears[name], scheme)
        if scheme is not None and name in linears
        else PlainSpec(shape, float_dtype)
        for name, shape in tensor_shapes(config).items()
    }
    return ArtifactHeader(config, layout)


def _schemes(container: TargetContainer, generation: str) -> list[Scheme]:
    """One scheme for each number of bits, group size and kind of codes; zero points first."""
    found: dict[tuple[int, int, str], Scheme] = {}
    for runtime in container.runtimes:
        if generation in runtime.generations:
            for product in runtime.schemes:
                for scheme in _product(product):
                    found.setdefault((scheme.bits, scheme.group_size, scheme.codes), scheme)
    return [found[key] for key in sorted(found, key=lambda key: (key[2], key[0], key[1]))]


def _product(product: Schemes) -> Iterator[Scheme]:
    for bits in product.bits:
        for size in product.group_sizes:
            if product.codes == INTEGER:
                yield AffineScheme(bits, size, symmetric=min(product.symmetric))
            elif product.codes == "llm.int8":
                yield RowwiseScheme(LLM_INT8_THRESHOLD)
            elif product.codes in CODEBOOKS:
                yield CodebookScheme(CODEBOOKS[product.codes], size, nested=True)


def _named(scheme: Scheme) -> str:
    """Name a scheme in a table: ``w4-g128``, ``nf4-g64``, ``llm.int8``."""
    kind = [] if scheme.codes == INTEGER else [scheme.codes]
    return "-".join(filter(None, [*kind, label(scheme)]))


def _quantizer(scheme: Scheme) -> str:
    """The command that makes a scheme, without the options that have its value by default."""
    if scheme.codes == "llm.int8":
        return "gemquant int8 MODEL"
    if scheme.codes != INTEGER:
        size = "" if scheme.group_size == 64 else f" --block-size {scheme.group_size}"
        return f"gemquant {scheme.codes} MODEL{size}"
    size = "" if scheme.group_size == 128 else f" --group-size {scheme.group_size}"
    return f"gemquant awq MODEL --bits {scheme.bits}{size}"


# ---------------------------------------------------------------- GGUF


def _gguf(container: TargetContainer, config: Mapping[str, Any]) -> Iterator[Candidate]:
    """Every file type of llama.cpp's; sizes of the tensors, without the tokenizer's few MB."""
    generation = loading_kind(config["model_type"], linear_shapes(config))
    loading = [r for r in container.runtimes if generation in r.generations]
    loaded = {product.codes for r in loading for product in r.schemes} & set(BLOCK_FORMATS)
    runtimes = tuple(r.name for r in loading)
    requires = tuple(loading[0].requires) if loading else ()
    for kind in FILE_TYPES.values():
        command = f"gemquant gguf MODEL --type {kind.name}"
        try:
            tensors = choose_types(config, TypeRequest(kind), has_importance=True).tensors
        except GemquantError as error:
            yield Candidate(GGUF, kind.name, command, refused=error.message)
            continue
        if not {t.type.name for t in tensors if len(t.shape) == 2} <= loaded:
            continue
        size = sum(t.size_bytes for t in tensors)
        unread = 0
        if not config["tie_word_embeddings"]:
            table = tensor_shapes(config)[EMBEDDING]
            unread = next(t.size_bytes for t in tensors if prod(t.shape) == prod(table))
        yield Candidate(GGUF, kind.name, command, runtimes, requires, size, size, size - unread)


# ---------------------------------------------------------------- NPUs: estimates


SCALE_BYTES = 4
"""Of the scale of a row or a group: float32, as toolkit 1.0.1 stores it."""

EMBEDDING_BYTES = 2


def npu_candidates(target: Target, config: Mapping[str, Any]) -> list[Candidate]:
    """One candidate for each quantized dtype of the NPU, at optimization level 0."""
    assert target.npu is not None
    toolkit = load_toolkit(target.npu.toolkit)
    return [_candidate(target, target.npu, toolkit, each, config) for each in target.npu.dtypes]


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
    target: Target, npu: Npu, toolkit: Toolkit, dtype: NpuDtype, config: Mapping[str, Any]
) -> Candidate:
    command = f"gemquant rkllm MODEL --target {target.name} --quantized-dtype {dtype.name}"
    versions = toolkit.converting(npu.platform, config["model_type"], dtype.name)
    refused = group_problem(config, dtype)
    if not versions:
        refused = f"no version of {toolkit.name} converts {config['model_type']} so"
    if refused is not None:
        return Candidate("rkllm", dtype.name, command, refused=refused)
    oldest = versions[0]
    # What the vendor's memory figures add up to: linears and a head in the dtype, no embedding.
    head_shape = tensor_shapes({**config, "tie_word_embeddings": False})[HEAD]
    resident = linear_bytes(config, dtype) + _matrix_bytes((head_shape[0], head_shape[1]), dtype)
    weights = weight_count(config)
    return Candidate(
        "rkllm",
        dtype.name,
        command,
        runtimes=("RKLLM",),
        requires=(
            f"{toolkit.name}>={oldest.version}",
            "librkllmrt of the toolkit's version",
            f"NPU driver>={max(npu.driver, oldest.driver)}",
        ),
        file_bytes=stored_bytes(config, dtype),
        resident_bytes=resident,
        token_bytes=resident,
        size="estimate",
        conversion_bytes=int(toolkit.conversion.bytes_per_weight * weights),
        conversion_seconds=toolkit.conversion.seconds_per_million[0] * weights / 1e6,
    )
