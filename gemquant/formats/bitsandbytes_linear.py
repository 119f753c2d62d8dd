"""How bitsandbytes stores one linear: 8-bit rows, or codes of a codebook with their state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gemquant.core.protocols import PlainSpec, QuantizedSpec, QuantizedWeight
from gemquant.core.scheme import Scheme
from gemquant.core.weights import (
    CodebookScheme,
    CodebookWeight,
    NestedScales,
    RowwiseScheme,
    RowwiseWeight,
)
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.safetensors.mapped import MappedSafetensors
from gemquant.numerics.bitsandbytes import (
    NESTED_BLOCK,
    codebook,
    dequantize_dynamic,
    dynamic_codebook,
)
from gemquant.numerics.packing import reinterpreted

LONGEST_FLOAT = len("-1.1754943508222875e-38")
STATE_LIMIT_BYTES = 4096


def is_held(scheme: Scheme) -> bool:
    """Whether bitsandbytes has the data type."""
    return isinstance(scheme, (CodebookScheme, RowwiseScheme))


class BitsAndBytesLinear:
    """The tensors of one linear; satisfies ``PackedLinear``."""

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """What stands in the file; the state's length does not depend on the weights."""
        scheme, (rows, columns) = spec.scheme, spec.shape
        if not isinstance(scheme, CodebookScheme):
            return {
                "weight": PlainSpec((rows, columns), torch.int8),
                "SCB": PlainSpec((rows,), torch.float32),
                "weight_format": PlainSpec((), torch.uint8),
            }
        storage = _dtype(scheme.storage_dtype)
        blocks = scheme.blocks(spec.shape)
        state = len(_quant_state(spec.shape, scheme, 0.0))
        stored = {
            "weight": PlainSpec((rows * columns // 2 // storage.itemsize, 1), storage),
            "weight.absmax": PlainSpec((blocks,), torch.uint8 if scheme.nested else torch.float32),
            "weight.quant_map": PlainSpec((16,), torch.float32),
            _state_name(scheme.codes): PlainSpec((state,), torch.uint8),
        }
        if scheme.nested:
            outer = -(-blocks // NESTED_BLOCK)
            stored["weight.nested_absmax"] = PlainSpec((outer,), torch.float32)
            stored["weight.nested_quant_map"] = PlainSpec((256,), torch.float32)
        return stored

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced, or whose scales are not finite."""
        if (weight.scheme, weight.shape) != (spec.scheme, spec.shape):
            raise ValueError(
                f"{name} came as {weight.scheme} {weight.shape}, announced as {spec.scheme} "
                f"{spec.shape}."
            )
        if not isinstance(weight, (CodebookWeight, RowwiseWeight)):
            raise TypeError(f"{name} came as {type(weight).__name__}.")
        if not torch.isfinite(weight.scales).all():
            raise UnsupportedError(
                f"{name} has weights beyond what its scales can hold.",
                hint="Leave the layer in floating point with --skip.",
            )

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Codes under the weight's own name, and what decodes them."""
        if isinstance(weight, RowwiseWeight):
            return {
                "weight": weight.codes,
                "SCB": weight.scales,
                "weight_format": torch.tensor(0, dtype=torch.uint8),
            }
        if not isinstance(weight, CodebookWeight):
            raise TypeError(f"{type(weight).__name__} is no weight of bitsandbytes.")
        scheme, nested = weight.scheme, weight.nested
        state = _quant_state(weight.shape, scheme, nested.offset if nested else 0.0)
        storage = _dtype(scheme.storage_dtype)
        stored = {
            "weight": reinterpreted(weight.packed, storage)[:, None],
            "weight.absmax": nested.codes if nested else weight.scales,
            "weight.quant_map": codebook(scheme.codes),
            _state_name(scheme.codes): torch.frombuffer(bytearray(state), dtype=torch.uint8),
        }
        if nested is not None:
            stored["weight.nested_absmax"] = nested.scales
            stored["weight.nested_quant_map"] = dynamic_codebook()
        return stored

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> QuantizedWeight:
        """Undo pack; a state that contradicts the model's shape is an ArtifactError."""
        scheme = spec.scheme
        if isinstance(scheme, RowwiseScheme):
            return RowwiseWeight(scheme, stored["weight"], stored["SCB"]).rows(start, stop)
        if not isinstance(scheme, CodebookScheme):
            raise TypeError(f"{scheme} is no scheme of bitsandbytes.")
        state = _parsed(stored[_state_name(scheme.codes)])
        if state.get("shape") != list(spec.shape):
            raise ArtifactError(
                f"quant_state says {state.get('shape')}, the model {list(spec.shape)}."
            )
        scales, nested = stored["weight.absmax"], None
        if scheme.nested:
            nested = NestedScales(scales, stored["weight.nested_absmax"], state["nested_offset"])
            scales = dequantize_dynamic(nested.codes, nested.scales) + nested.offset
        packed = reinterpreted(stored["weight"].flatten(), torch.uint8)
        weight = CodebookWeight(scheme, spec.shape, packed, scales, nested)
        return weight if (start, stop) == (0, spec.shape[0]) else weight.rows(start, stop)


def read_quant_state(stored: MappedSafetensors, module: str, codes: str) -> Mapping[str, Any]:
    """Read a module's state; ValueError where there is none that can be read."""
    name = f"{module}.{_state_name(codes)}"
    if name not in stored.shapes:
        raise ValueError(f"{name} is missing")
    return _parsed(stored.tensor(name))


def _parsed(state: Tensor) -> Mapping[str, Any]:
    if state.ndim != 1 or state.dtype != torch.uint8 or state.numel() > STATE_LIMIT_BYTES:
        raise ValueError("quant_state is no JSON document")
    parsed = json.loads(state.numpy().tobytes())
    if not isinstance(parsed, dict):
        raise TypeError("quant_state is no JSON object")
    return parsed


def _state_name(codes: str) -> str:
    return f"weight.quant_state.bitsandbytes__{codes}"


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no type of torch.")
    return dtype


def _quant_state(shape: tuple[int, int], scheme: CodebookScheme, offset: float) -> bytes:
    """Write the state as JSON, padded with spaces to a length that the offset does not change."""
    state: dict[str, Any] = {
        "quant_type": scheme.codes,
        "blocksize": scheme.group_size,
        "dtype": "bfloat16",
        "shape": list(shape),
    }
    if not scheme.nested:
        return json.dumps(state).encode()
    state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
    length = len(json.dumps({**state, "nested_offset": 0})) + LONGEST_FLOAT
    return json.dumps({**state, "nested_offset": offset}).ljust(length).encode()
