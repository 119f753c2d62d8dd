"""Tiny artifacts, made without the pipeline: round-to-nearest weights through an exporter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.core.artifact import (
    Artifact,
    LevelEvaluation,
    Manifest,
    Source,
    finalize,
    quantization_record,
    staged,
)
from gemquant.core.protocols import (
    AffineScheme,
    AffineWeight,
    ArtifactHeader,
    Exporter,
    PlainSpec,
    QuantizedSpec,
    RowChunks,
)
from gemquant.models.config import text_config
from gemquant.models.structure import EMBEDDING, HEAD
from tests.helpers.tiny_gemma import Kind, tiny_config, tiny_tensors

W4 = AffineScheme(bits=4, group_size=128, symmetric=False)
W4_SYMMETRIC = AffineScheme(bits=4, group_size=32, symmetric=True)


def rounded(
    weight: Tensor, scheme: AffineScheme, scale_dtype: torch.dtype, *, biased: bool = False
) -> AffineWeight:
    """Round to nearest, plainly: what is stored beside codes first into its type, then codes."""
    rows, columns = weight.shape
    groups = weight.float().view(rows, scheme.groups(columns), -1)
    largest = 2**scheme.bits - 1
    if scheme.symmetric:
        scales = (groups.abs().amax(-1) / (largest // 2)).to(scale_dtype)
        zeros = torch.full(scales.shape, float(2 ** (scheme.bits - 1)))
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / largest).to(scale_dtype)
        zeros = torch.round(-low / scales.float()).clamp(0, largest)
    if biased:
        zeros = (zeros * scales.float()).to(scale_dtype).float() / scales.float()
    codes = torch.round(groups / scales.float()[..., None] + zeros[..., None])
    codes = codes.clamp(0, largest).to(torch.uint8).view(rows, columns)
    return AffineWeight(scheme, codes, scales, zeros if biased else zeros.to(torch.uint8))


@dataclass(frozen=True)
class TinyArtifact:
    """What was written: the header, and each tensor's value as a reader must see it, float32."""

    header: ArtifactHeader
    decoded: Mapping[str, Tensor]


def tiny_header(
    exporter: Exporter,
    kind: Kind = "gemma2",
    scheme: AffineScheme = W4,
    *,
    tied: bool = True,
    quantized_head: bool = False,
    schemes: Mapping[str, AffineScheme | None] | None = None,
) -> ArtifactHeader:
    """Lay out a tiny Gemma; ``schemes`` overrides single tensors, None leaving them unquantized."""
    config = text_config({**tiny_config(kind), "tie_word_embeddings": tied})
    dtype = exporter.container(config).float_dtype
    layout: dict[str, PlainSpec | QuantizedSpec] = {}
    for name, tensor in tiny_tensors(config, tied=tied).items():
        linear = tensor.ndim == 2 and name != EMBEDDING and (name != HEAD or quantized_head)
        chosen = (schemes or {}).get(name, scheme) if linear else None
        if chosen is None:
            layout[name] = PlainSpec(tuple(tensor.shape), dtype)
        else:
            layout[name] = QuantizedSpec((tensor.shape[0], tensor.shape[1]), chosen)
    return ArtifactHeader(config, layout)


def write_tiny_weights(
    folder: Path, exporter: Exporter, header: ArtifactHeader, *, tied: bool = True
) -> TinyArtifact:
    """Write weights and config.json into an existing folder, the last tensor first."""
    container = exporter.container(header.config)
    decoded: dict[str, Tensor] = {}
    with exporter.create(folder, header) as writer:
        for name, tensor in reversed(tiny_tensors(header.config, tied=tied).items()):
            spec = header.layout[name]
            value: Any = tensor
            if isinstance(spec, QuantizedSpec):
                value = rounded(tensor, spec.scheme, container.scale_dtype, biased=container.biases)
                decoded[name] = _decoded(value)
            else:
                decoded[name] = tensor.to(spec.dtype).float()
                if name == EMBEDDING:
                    value = in_runs(tensor, 100)
            writer.write({name: value})
        config = writer.finish()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return TinyArtifact(header, decoded)


def in_runs(tensor: Tensor, rows: int) -> RowChunks:
    """Give a matrix in runs of ``rows`` rows."""

    def chunks() -> Iterator[Tensor]:
        yield from tensor.split(rows)

    return RowChunks((tensor.shape[0], tensor.shape[1]), tensor.dtype, chunks)


def tiny_manifest(header: ArtifactHeader, container: str | Exporter) -> Manifest:
    """A manifest without files or measurements. container: or its exporter, for the true size."""
    file_bytes = 1_000_000
    if not isinstance(container, str):
        file_bytes = sum(container.file_sizes(header).values())
        container = container.name
    return Manifest(
        container=container,
        architecture=header.config["model_type"],
        base_model="google/gemma-2-2b",
        source=Source(ref="google/gemma-2-2b", revision="c5ebcd4", files={"w": "0" * 64}),
        recipe={"model": "google/gemma-2-2b", "quantizer": "rtn", "samples": 16},
        quantization=quantization_record(
            "rtn", header.layout, float_dtype="bfloat16", file_bytes=file_bytes
        ),
        certificates=(
            LevelEvaluation(level="native", runtime="transformers", not_run="not installed"),
        ),
        libraries={"torch": "2.13.0"},
    )


def write_tiny_artifact(path: Path, exporter: Exporter) -> Artifact:
    """Write, seal and open a whole artifact."""
    header = tiny_header(exporter)
    with staged(path, force=False, needed_bytes=0) as folder:
        write_tiny_weights(folder, exporter, header)
        finalize(folder, tiny_manifest(header, exporter))
    return Artifact.open(path)


def _decoded(weight: AffineWeight) -> Tensor:
    """scale · (code − zero_point), written out once more so that no code of ours is trusted.

    Where biases are stored, in a loader's order: scale · code + bias.
    """
    columns = weight.shape[1]
    width = columns // weight.scales.shape[1]
    zeros = weight.zero_points.float().repeat_interleave(width, 1)
    scales = weight.scales.float().repeat_interleave(width, 1)
    if weight.zero_points.dtype == torch.float32:
        biases = (-zeros * scales).to(weight.scales.dtype).float()
        return weight.codes.float() * scales + biases
    return (weight.codes.float() - zeros) * scales
