"""Every scheme of every container that a target's runtimes load, with sizes from our exporters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from gemquant.convert.estimate.candidate import Candidate, table_size, weight_count
from gemquant.convert.plugins import exporter
from gemquant.core.protocols import ArtifactHeader, Exporter, PlainSpec, QuantizedSpec
from gemquant.core.scheme import BLOCK_FORMATS, INTEGER, Scheme, label
from gemquant.core.targets.target import Runtime, Schemes, Target, TargetContainer
from gemquant.core.weights import AffineScheme, CodebookName, CodebookScheme, RowwiseScheme
from gemquant.errors import GemquantError
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.types import TypeRequest, choose_types
from gemquant.models.architecture import linear_shapes, tensor_shapes
from gemquant.models.structure import EMBEDDING

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
            made += _gguf(target, container, config)
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
    generation = config["model_type"]
    for scheme in _schemes(container, generation):
        loading = _loading(container, generation, [scheme])
        command = (
            f"gemquant {_quantizer(scheme)} --target {target.name} --exporter {container.exporter}"
        )
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
        command = f"gemquant cast MODEL --dtype {dtype} --target {target.name}"
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
    if scheme.codes == "llm.int8":
        return "int8 MODEL"
    if scheme.codes != INTEGER:
        return f"{scheme.codes} MODEL --block-size {scheme.group_size}"
    return f"awq MODEL --bits {scheme.bits} --group-size {scheme.group_size}"


# ---------------------------------------------------------------- GGUF


def _gguf(
    target: Target, container: TargetContainer, config: Mapping[str, Any]
) -> Iterator[Candidate]:
    """Every file type of llama.cpp's; sizes of the tensors, without the tokenizer's few MB."""
    loading = [r for r in container.runtimes if config["model_type"] in r.generations]
    loaded = {product.codes for r in loading for product in r.schemes} & set(BLOCK_FORMATS)
    runtimes = tuple(r.name for r in loading)
    requires = tuple(loading[0].requires) if loading else ()
    for kind in FILE_TYPES.values():
        command = f"gemquant gguf MODEL --target {target.name} --type {kind.name}"
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
