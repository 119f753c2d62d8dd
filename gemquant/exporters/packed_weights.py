"""Reads a finished safetensors artifact back under Gemma's own names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gemquant.errors import ArtifactError, GemquantError, refuse
from gemquant.exporters.limits import listed
from gemquant.exporters.packed_linear import PackedLinear, module_of, stored_specs
from gemquant.exporters.safetensors_writer import TYPE_NAMES
from gemquant.exporters.transformers_config import text_config
from gemquant.gemma.structure import tensor_shapes
from gemquant.protocols import AffineScheme, AffineSpec, AffineWeight, Layout, PlainSpec

SchemeReader = Callable[[Mapping[str, Any], str], AffineScheme]
"""(quantization_config, module) → scheme."""

_TYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}
_CONFIG_LIMIT_BYTES = 16_000_000


class PackedWeights:
    """Satisfies ``protocols.Weights``; affine weights decode to scale · (code − zero_point).

    layout: what each of Gemma's tensors is stored as.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        layout: Layout,
        packing: PackedLinear,
        places: Mapping[str, Any],
    ) -> None:
        self.layout = layout
        self._config = config
        self._packing = packing
        self._places = places

    @classmethod
    def open(cls, folder: Path, packing: PackedLinear, scheme_of: SchemeReader) -> PackedWeights:
        """Read headers alone; every difference from what the model needs is an ArtifactError."""
        runtime = _read_config(folder)
        places = _map_files(folder)
        config = text_config(runtime)
        quantization = runtime.get("quantization_config") or {}
        layout: dict[str, PlainSpec | AffineSpec] = {}
        problems: list[GemquantError] = []
        for name, shape in tensor_shapes(config).items():
            if name in places:
                layout[name] = PlainSpec(shape, _spec(places, name).dtype)
            elif len(shape) == 2:
                scheme = scheme_of(quantization, module_of(name))
                layout[name] = AffineSpec((shape[0], shape[1]), scheme)
            else:
                problems.append(ArtifactError(f"{folder}: {name} is missing."))
        problems += _differences(folder, stored_specs(layout, packing), places)
        refuse(problems)
        return cls(config, layout, packing, places)

    @property
    def config(self) -> Mapping[str, Any]:
        """The text model's configuration."""
        return self._config

    def names(self) -> Sequence[str]:
        """Names in the order of the forward pass."""
        return list(self.layout)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape under Gemma's name, whatever the packed shape."""
        return self.layout[name].shape

    def stored_dtype(self, name: str) -> torch.dtype:
        """The stored type; float32 for affine weights."""
        spec = self.layout[name]
        return spec.dtype if isinstance(spec, PlainSpec) else torch.float32

    def affine(self, name: str) -> AffineWeight:
        """Return a quantized weight as codes, scales and zero points."""
        spec = self.layout[name]
        if not isinstance(spec, AffineSpec):
            raise ValueError(f"{name} is not quantized.")  # noqa: TRY004
        module = module_of(name)
        stored = {
            suffix: self._places[f"{module}.{suffix}"].get_tensor(f"{module}.{suffix}")
            for suffix in self._packing.specs(spec)
        }
        return self._packing.unpack(stored, spec.shape, spec.scheme)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, decoded."""
        if isinstance(self.layout[name], AffineSpec):
            tensor = self.affine(name).dequantize()
        else:
            tensor = self._places[name].get_tensor(name)
        return tensor if dtype is None else tensor.to(dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of a matrix; a plain one is read without its other rows."""
        if isinstance(self.layout[name], AffineSpec):
            rows = self.tensor(name)[start:stop]
        else:
            rows = self._places[name].get_slice(name)[start:stop]
        return rows if dtype is None else rows.to(dtype)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _CONFIG_LIMIT_BYTES:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes: not a configuration.")
        config = json.loads(path.read_bytes())
        tensor_shapes(config)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not the configuration of a Gemma: {error}.") from error
    return dict(config)


def _map_files(folder: Path) -> dict[str, Any]:
    """Open every safetensors file; tensor's stored name → the open file that holds it."""
    places: dict[str, Any] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} has no safetensors files.")
    for path in files:
        try:
            file: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}.") from error
        for name in file.keys():  # noqa: SIM118 (not a mapping: it cannot be iterated)
            if name in places:
                raise ArtifactError(f"{path}: {name} stands in another file too.")
            places[name] = file
    return places


def _spec(places: Mapping[str, Any], name: str) -> PlainSpec:
    view = places[name].get_slice(name)
    dtype = _TYPES.get(view.get_dtype())
    if dtype is None:
        raise ArtifactError(f"{name} has the type {view.get_dtype()}, which no exporter writes.")
    return PlainSpec(tuple(view.get_shape()), dtype)


def _differences(
    folder: Path, expected: Mapping[str, PlainSpec], places: Mapping[str, Any]
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    missing = [name for name in expected if name not in places]
    if missing:
        problems.append(ArtifactError(f"{folder} lacks {listed(missing)}."))
    unknown = [name for name in places if name not in expected]
    if unknown:
        problems.append(ArtifactError(f"{folder} has unexpected tensors: {listed(unknown)}."))
    for name, spec in expected.items():
        if name in places and (found := _spec(places, name)) != spec:
            problems.append(
                ArtifactError(
                    f"{name} is {found.dtype} {found.shape}, not {spec.dtype} {spec.shape}."
                )
            )
    return problems
