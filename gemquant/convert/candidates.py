"""Ways to store a model for a device: containers, schemes and sizes, from headers alone.

Sizes of containers come from our exporters; every other figure names what it was derived from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from gemquant.formats.gguf.names import places
from gemquant.formats.gguf.types import TypeRequest, choose_types
from gemquant.models.architecture import (
    linear_shapes,
    loading_kind,
    tensor_shapes,
    unread_for_a_token,
)
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE


@dataclass(frozen=True)
class Candidate:
    """container, scheme: as commands name them. command: what makes it.

    file_bytes: of all weight files, exact or estimated as ``size`` says; table_bytes: of them the
    table of per-layer inputs. resident_bytes: of weights in memory while it runs. token_bytes: read
    for a token: of tables a row, of experts those that it is routed to. requires: versions of what
    converts it and of what runs it. conversion_bytes, conversion_seconds: estimates; None where not
    known. refused: why the container cannot hold this model so, and then there are no sizes.
    """

    container: str
    scheme: str
    command: str
    runtimes: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    file_bytes: int = 0
    table_bytes: int = 0
    resident_bytes: int = 0
    token_bytes: int = 0
    size: Literal["exact", "estimate"] = "exact"
    conversion_bytes: int | None = None
    conversion_seconds: float | None = None
    refused: str | None = None


def weight_count(config: Mapping[str, Any]) -> int:
    """Number of weights; a tied head counts once."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def active_weights(config: Mapping[str, Any]) -> int:
    """Number of weights that a token reads; of experts, those that it is routed to."""
    shapes = tensor_shapes(config)
    unread = unread_for_a_token(config, shapes)
    return sum(prod(shape) for name, shape in shapes.items() if name not in unread)


def table_size(config: Mapping[str, Any], *names: str) -> int:
    """Values of the embedding, or of the tables named; 0 for one that is not there."""
    shapes = tensor_shapes(config)
    return sum(prod(shapes.get(name, (0,))) for name in names or (EMBEDDING,))


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
        else:
            found = [
                *(_plain(target, container, config) if container.exporter != GGUF else ()),
                *(_quantized if container.exporter != GGUF else _gguf)(target, container, config),
            ]
            made += found or [_unread(target, container.exporter, config)]
    return made


def _unread(target: Target, name: str, config: Mapping[str, Any]) -> Candidate:
    kind = loading_kind(config)
    reason = f"no runtime of target {target.name} is known to load {name} of {kind}"
    return Candidate(name, "any scheme", "", refused=reason)


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
    generation = loading_kind(config)
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
    kind = loading_kind(config, ())
    dtypes = dict.fromkeys(dtype for r in container.runtimes if not r.schemes for dtype in r.dtypes)
    for dtype in dtypes:
        loading = [r for r in container.runtimes if r.loads(kind, []) and dtype in r.dtypes]
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
    config, layout = header.config, header.layout
    float_dtype = made.container(config).float_dtype
    unread = unread_for_a_token(config, layout)

    def size_of(names: Iterable[str]) -> int:
        part = {name: layout[name] for name in names}
        return sum(made.file_sizes(ArtifactHeader(config, part)).values())

    size = resident = size_of(layout)
    read = size_of(name for name in layout if name not in unread)
    if loading[0].decompresses:
        resident = UNPACKED_BYTES * weight_count(config)
        read = UNPACKED_BYTES * active_weights(config)
    return Candidate(
        container,
        scheme,
        command,
        tuple(runtime.name for runtime in loading),
        tuple(loading[0].requires),
        file_bytes=size,
        table_bytes=table_size(config, PER_LAYER_TABLE) * float_dtype.itemsize,
        resident_bytes=resident,
        token_bytes=read,
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
    symmetric = " --symmetric" if isinstance(scheme, AffineScheme) and scheme.symmetric else ""
    return f"gemquant awq MODEL --bits {scheme.bits}{size}{symmetric}"


# ---------------------------------------------------------------- GGUF


def _gguf(
    _target: Target, container: TargetContainer, config: Mapping[str, Any]
) -> Iterator[Candidate]:
    """Every file type of llama.cpp's; sizes of the tensors, without the tokenizer's few MB."""
    generation = loading_kind(config)
    stored = {name: tensor for name, (tensor, _) in places(config).items()}
    parts, unread = Counter(stored.values()), unread_for_a_token(config, stored)
    read = Counter(tensor for name, tensor in stored.items() if name not in unread)
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
        sizes = {t.name: t.size_bytes for t in tensors}
        size = sum(sizes.values())
        yield Candidate(
            GGUF,
            kind.name,
            command,
            runtimes,
            requires,
            file_bytes=size,
            table_bytes=sizes.get(stored.get(PER_LAYER_TABLE, ""), 0),
            resident_bytes=size,
            token_bytes=sum(n * read[t] // max(parts[t], 1) for t, n in sizes.items()),
        )


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
    tables in float16, a head of its own.
    """
    head_bits = version.head_bits if version is not None else None
    plain = sum(4 * prod(shape) for shape in tensor_shapes(config).values() if len(shape) == 1)
    head = table_size(config) * (head_bits or dtype.weight_bits) // 8
    tables = EMBEDDING_BYTES * table_size(config, EMBEDDING, PER_LAYER_TABLE)
    return linear_bytes(config, dtype) + plain + head + tables


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
    kind = loading_kind(config)
    versions = toolkit.converting(npu.platform, kind, dtype.name)
    refused = group_problem(config, dtype)
    if not versions:
        refused = f"no version of {toolkit.name} converts {kind} so"
    if refused is not None:
        return Candidate("rkllm", dtype.name, command, refused=refused)
    oldest = versions[0]
    # What the vendor's memory figures add up to: linears and a head in the dtype, no tables.
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
        table_bytes=EMBEDDING_BYTES * table_size(config, PER_LAYER_TABLE),
        resident_bytes=resident,
        token_bytes=resident,
        size="estimate",
        conversion_bytes=int(toolkit.conversion.bytes_per_weight * weights),
        conversion_seconds=toolkit.conversion.seconds_per_million[0] * weights / 1e6,
    )
