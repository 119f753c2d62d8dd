"""Writes a layout of plain and affine tensors into safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError
from gemquant.exporters.packed_linear import PackedLinear, module_of, stored_specs
from gemquant.exporters.safetensors_writer import SafetensorsWriter
from gemquant.protocols import AffineSpec, AffineWeight, Layout, PlainSpec, RowChunks


class PackedWriter:
    """Satisfies ``protocols.Writer``.

    Floating-point tensors are rounded to the announced type; a value that overflows there is an
    UnsupportedError. Affine weights must come in the container's types: the quantizer decides how
    scales are rounded, so that codes and scales belong together.
    """

    def __init__(
        self,
        files: SafetensorsWriter,
        layout: Layout,
        packing: PackedLinear,
        config: Mapping[str, Any],
    ) -> None:
        self._files = files
        self._layout = layout
        self._packing = packing
        self._config = config

    def write(self, tensors: Mapping[str, Any]) -> None:
        """Store Tensor, AffineWeight or RowChunks values under Gemma's full names."""
        for name, value in tensors.items():
            spec = self._layout.get(name)
            if spec is None:
                raise ValueError(f"{name} is not in the layout.")
            if isinstance(spec, AffineSpec):
                self._write_affine(name, value, spec)
            elif isinstance(value, AffineWeight):
                raise ValueError(f"{name} came quantized, announced as {spec.dtype}.")  # noqa: TRY004
            elif isinstance(value, RowChunks):
                self._files.write_chunks(name, _rounded_chunks(name, value, spec))
            else:
                self._files.write(name, _rounded(name, value, spec.dtype))

    def finish(self) -> Mapping[str, Any]:
        """Complete the files; return what config.json must hold."""
        self._files.finish()
        return self._config

    def _write_affine(self, name: str, weight: Any, spec: AffineSpec) -> None:
        if not isinstance(weight, AffineWeight):
            raise ValueError(f"{name} came unquantized, announced with {spec.scheme}.")  # noqa: TRY004
        _check_affine(name, weight, spec, self._packing.scale_dtype)
        for suffix, tensor in self._packing.pack(weight).items():
            self._files.write(f"{module_of(name)}.{suffix}", tensor)


@contextmanager
def packed_writer(
    folder: Path,
    layout: Layout,
    packing: PackedLinear,
    config: Mapping[str, Any],
    *,
    max_shard_bytes: int,
) -> Iterator[PackedWriter]:
    """Open the files of a layout in an existing folder; close them whatever happens."""
    specs = stored_specs(layout, packing)
    with SafetensorsWriter(folder, specs, max_shard_bytes=max_shard_bytes) as files:
        yield PackedWriter(files, layout, packing, config)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the stored type; the same tensor where nothing needs converting."""
    if tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        largest = tensor.abs().max().item()
        raise UnsupportedError(
            f"{name} holds {largest:g}; the largest {dtype} is {torch.finfo(dtype).max:g}.",
            hint="Use a container in bfloat16, such as compressed-tensors.",
        )
    return rounded


def _rounded_chunks(name: str, chunks: RowChunks, spec: PlainSpec) -> RowChunks:
    if chunks.dtype == spec.dtype:
        return chunks

    def rounded() -> Iterator[Tensor]:
        for chunk in chunks.chunks():
            yield _rounded(name, chunk, spec.dtype)

    return RowChunks(chunks.shape, spec.dtype, rounded)


def _check_affine(
    name: str, weight: AffineWeight, spec: AffineSpec, scale_dtype: torch.dtype
) -> None:
    """Refuse a weight that is not what was announced, or would not survive packing."""
    groups = (spec.shape[0], spec.scheme.groups(spec.shape[1]))
    expected = (spec.scheme, spec.shape, groups, groups, torch.uint8, scale_dtype)
    found = (
        weight.scheme,
        weight.shape,
        tuple(weight.scales.shape),
        tuple(weight.zero_points.shape),
        weight.codes.dtype,
        weight.scales.dtype,
    )
    if found != expected:
        raise ValueError(f"{name} came as {found}, announced as {expected}.")
    limit = 2**spec.scheme.bits
    whole = weight.zero_points.dtype == torch.uint8
    if int(weight.codes.max()) >= limit or (whole and int(weight.zero_points.max()) >= limit):
        raise ValueError(
            f"{name} has codes or zero points that do not fit {spec.scheme.bits} bits."
        )
    if spec.scheme.symmetric and not bool((weight.zero_points == limit // 2).all()):
        raise ValueError(f"{name} is symmetric, but has zero points other than {limit // 2}.")
    if not torch.isfinite(weight.scales).all():
        raise UnsupportedError(
            f"{name} has scales beyond {scale_dtype}.",
            hint="Use a container in bfloat16, such as compressed-tensors.",
        )
