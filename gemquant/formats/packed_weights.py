"""How a container packs a linear, and weights read back from a finished safetensors folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gemquant.core.artifact import (
    MANIFEST_FILE,
    read_manifest,
    structure_problems,
    tower_problems,
)
from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec, QuantizedWeight
from gemquant.core.scheme import PER_CHANNEL, Scheme
from gemquant.errors import ArtifactError, GemquantError, Problems, listed, refuse
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.sentence import with_modules
from gemquant.formats.checkpoint.source import text_module, text_name
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.formats.transformers_config import renamed_modules
from gemquant.models.architecture import places_in_stacks, stacked_tensors, tensor_shapes
from gemquant.models.config import architecture_of_file, text_config
from gemquant.models.structure import Stack


class PackedLinear(Protocol):
    """Stores a quantized weight as tensors ``MODULE.suffix``; suffixes are the keys below.

    by_rows: every row is packed alone, so that rows can be written and read by themselves.
    """

    by_rows: ClassVar[bool]

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """Shapes and types of the stored tensors, by suffix."""

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced, or would not survive packing."""

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """The stored tensors, by suffix."""

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> QuantizedWeight:
        """Undo pack for rows ``start`` to ``stop`` of the weight."""


def module_of(name: str) -> str:
    """Return the module of a weight: ``model.layers.0.mlp.up_proj``."""
    return name.removesuffix(".weight")


def plain_stacks(config: Mapping[str, Any], layout: Layout) -> dict[str, Stack]:
    """Stacks of matrices that stay in floating point, which loaders read as one tensor."""
    return {
        name: stack
        for name, stack in stacked_tensors(config).items()
        if all(isinstance(layout.get(part), PlainSpec) for part in stack.parts)
    }


Joined = Callable[[str], tuple[str, int | None]]
"""Module → the module that the container stores it as, and which of several it is there."""


def apart(module: str) -> tuple[str, int | None]:
    """Every module is stored as itself."""
    return module, None


def stored_specs(
    layout: Layout,
    packing: PackedLinear | None,
    stacks: Mapping[str, Stack],
    joined: Joined = apart,
) -> dict[str, PlainSpec]:
    """Return every tensor that a layout becomes in the file, by its full name there.

    packing: None where nothing in the layout is quantized. stacks: matrices stored as one tensor.
    """
    stored: dict[str, PlainSpec] = {}
    stack_of = {part: name for name, stack in stacks.items() for part in stack.parts}
    for name, spec in layout.items():
        if name in stack_of:
            stack = stack_of[name]
            stored[stack] = PlainSpec(stacks[stack].shape, spec.dtype)  # type: ignore[union-attr]
        elif isinstance(spec, PlainSpec):
            stored[name] = spec
        else:
            assert packing is not None, name
            module, number = joined(module_of(name))
            for suffix, part in packing.specs(spec).items():
                key = f"{module}.{suffix}"
                count = stored[key].shape[0] + 1 if key in stored else 1
                shape = part.shape if number is None else (count, *part.shape)
                stored[key] = PlainSpec(shape, part.dtype)
    return stored


SchemeReader = Callable[[Mapping[str, Any], SafetensorsFiles, str], Scheme]
"""(quantization_config, tensors, module) → scheme; ArtifactError where there is none."""


class StoredWeights:
    """The part of ``protocols.Weights`` that comes from the configuration and the layout.

    layout: how each of Gemma's tensors is stored.
    """

    def __init__(self, config: Mapping[str, Any], layout: Layout) -> None:
        self._config, self.layout = config, layout

    @property
    def config(self) -> Mapping[str, Any]:
        """The text model's configuration."""
        return self._config

    def names(self) -> Sequence[str]:
        """Names in the order of the forward pass."""
        return list(self.layout)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape under Gemma's name, whatever the stored shape."""
        return self.layout[name].shape


def _checked(scheme: Scheme) -> Scheme:
    """The scheme that a file describes; ValueError where its values have no meaning."""
    bits, size = scheme.bits, scheme.group_size
    whole = type(bits) is int and type(size) is int and type(scheme.symmetric) is bool
    if not whole or not 1 <= bits <= 16 or size < PER_CHANNEL or size == 0:
        raise ValueError(f"{scheme} is no scheme")
    return scheme


class PackedWeights(StoredWeights):
    """Satisfies ``protocols.Weights``; quantized weights decode as their runtime decodes them."""

    def __init__(
        self,
        config: Mapping[str, Any],
        layout: Layout,
        packing: PackedLinear | None,
        stored: SafetensorsFiles,
        places: Mapping[str, tuple[str, int]],
        joined: Joined,
    ) -> None:
        super().__init__(config, layout)
        self._packing, self._joined = packing, joined
        self._stored = stored
        self._places = places

    @classmethod
    def open(
        cls,
        folder: Path,
        packing: PackedLinear | None,
        scheme_of: SchemeReader,
        joined: Joined = apart,
    ) -> PackedWeights:
        """Read headers alone; report everything that differs from what the model needs.

        packing: None for a container that holds nothing quantized. If the folder has a
        manifest, each layer must be stored as the manifest describes it.
        """
        with _as_artifact_errors():
            runtime = read_json_object(folder / "config.json")
            quantization = runtime.pop("quantization_config", None)
            runtime.pop("quantization", None)  # mlx-lm's name for the same
            others: Mapping[Path, Callable[[str], str]] = {}
            if embeds := architecture_of_file(runtime).embeds:
                runtime, modules = with_modules(folder, runtime)
                others = modules.weights
            config = text_config(runtime)
            files = sorted(folder.glob("*.safetensors"))
            stored = SafetensorsFiles(files, text_name if embeds else None, others)
        towers: dict[str, PlainSpec] = {}
        if embeds:
            quantization = renamed_modules(quantization, text_module)
        if "text_config" in runtime:
            towers = {
                name: PlainSpec(shape, stored.stored_dtype(name))
                for name, shape in stored.shapes.items()
                if text_name(name) is None
            }
            stored = SafetensorsFiles(files, text_name)
            quantization = renamed_modules(quantization, text_module)
        layout: dict[str, PlainSpec | QuantizedSpec] = {}
        shapes = tensor_shapes(config)
        stacks = {n: s for n, s in stacked_tensors(config).items() if n in stored.shapes}
        places = places_in_stacks(stacks, shapes)
        for name, shape in shapes.items():
            if name in places:
                layout[name] = PlainSpec(shape, stored.stored_dtype(places[name][0]))
                continue
            dtype = stored.stored_dtype(name) if name in stored.shapes else None
            # Packed codes may have the weight's name, with another shape or as integers.
            packed = dtype is None or not dtype.is_floating_point or stored.shapes[name] != shape
            if packing is None or len(shape) != 2 or not packed:
                layout[name] = PlainSpec(shape, dtype or torch.bfloat16)
            else:
                table = _mapping(folder, quantization)
                with _valid_values(folder):
                    scheme = _checked(scheme_of(table, stored, joined(module_of(name))[0]))
                layout[name] = QuantizedSpec((shape[0], shape[1]), scheme)
        with _valid_values(folder):
            specs = stored_specs(layout, packing, stacks, joined)
        refuse(_differences(folder, specs, stored))
        if (folder / MANIFEST_FILE).exists():
            manifest = read_manifest(folder)
            refuse([*structure_problems(manifest, layout), *tower_problems(manifest, towers)])
        return cls(config, layout, packing, stored, places, joined)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The stored type; float32 for quantized weights."""
        spec = self.layout[name]
        return spec.dtype if isinstance(spec, PlainSpec) else torch.float32

    def quantized(self, name: str, start: int = 0, stop: int | None = None) -> QuantizedWeight:
        """Return a quantized weight, or some of its rows, as codes and what decodes them."""
        spec = self.layout[name]
        if not isinstance(spec, QuantizedSpec):
            raise ValueError(f"{name} is not quantized.")  # noqa: TRY004
        assert self._packing is not None, name
        module, number = self._joined(module_of(name))
        last = spec.shape[0] if stop is None else min(stop, spec.shape[0])
        parts = {}
        for suffix, part in self._packing.specs(spec).items():
            key = f"{module}.{suffix}"
            if number is None and not self._packing.by_rows:
                parts[suffix] = self._stored.tensor(key)
                continue
            height = part.shape[0]
            first = (number or 0) * height
            begin, end = (start, last) if self._packing.by_rows else (0, height)
            parts[suffix] = self._stored.rows(key, first + begin, first + end, part.dtype)
        if self._packing.by_rows:
            start, last = 0, last - start
        return self._packing.unpack(parts, spec, start, last)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, decoded."""
        if name in self._places:
            return self.rows(name, 0, self.shape(name)[0], dtype)
        if isinstance(self.layout[name], QuantizedSpec):
            tensor = self.quantized(name).dequantize()
        else:
            tensor = self._stored.tensor(name)
        return tensor if dtype is None else tensor.to(dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of a matrix without decoding the others, where the container allows it."""
        if isinstance(self.layout[name], QuantizedSpec):
            rows = self.quantized(name, start, stop).dequantize()
            return rows if dtype is None else rows.to(dtype)
        dtype = dtype or self.stored_dtype(name)
        if name in self._places:
            stack, first = self._places[name]
            last = first + min(stop, self.shape(name)[0])
            return self._stored.rows(stack, first + start, last, dtype)
        return self._stored.read(name, start, stop, dtype)


def _mapping(folder: Path, quantization: Any) -> Mapping[str, Any]:
    if isinstance(quantization, dict):
        return quantization
    raise ArtifactError(f"{folder / 'config.json'} has no quantization_config.")


@contextmanager
def _valid_values(folder: Path) -> Iterator[None]:
    """Raise ArtifactError for what a value of a wrong type or size leads to."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'}: quantization_config is not valid: {error}."
        ) from error


def _differences(
    folder: Path, expected: Mapping[str, PlainSpec], stored: SafetensorsFiles
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    missing = [name for name in expected if name not in stored.shapes]
    if missing:
        problems.append(ArtifactError(f"{folder} lacks {listed(missing)}."))
    unknown = [name for name in stored.shapes if name not in expected]
    if unknown:
        problems.append(ArtifactError(f"{folder} has unexpected tensors: {listed(unknown)}."))
    for name, spec in expected.items():
        if name in missing:
            continue
        actual = PlainSpec(stored.shapes[name], stored.stored_dtype(name))
        # A document of bitsandbytes' is as long as its writer made it.
        document = ".quant_state." in name and len(actual.shape) == 1
        if actual != spec and not (document and actual.dtype == spec.dtype):
            problems.append(
                ArtifactError(
                    f"{name} is {actual.dtype} {actual.shape}, not {spec.dtype} {spec.shape}."
                )
            )
    return problems


@contextmanager
def _as_artifact_errors() -> Iterator[None]:
    """Turn errors of checkpoints into errors of artifacts."""
    try:
        yield
    except Problems as several:
        refuse([ArtifactError(problem.message) for problem in several.problems])
    except GemquantError as error:
        raise ArtifactError(error.message) from None
