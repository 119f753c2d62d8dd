"""Pre-quantized bitsandbytes checkpoints: what transformers loads with no flags.

LLM.int8: ``weight`` int8 (out, in), ``SCB`` float32 (out), ``weight_format`` uint8 scalar.
NF4 and FP4: ``weight`` (out · in / 2, 1) in bytes, ``weight.absmax``, ``weight.quant_map`` float32
(16), ``weight.quant_state.bitsandbytes__nf4``, a JSON document; where scales are quantized too,
``absmax`` is uint8, with ``weight.nested_absmax`` and ``weight.nested_quant_map`` (256) in float32.

Source: bitsandbytes 0.50 ``QuantState.as_dict`` and ``Linear8bitLt._save_to_state_dict``;
transformers 5.23 ``quantizers/quantizer_bnb_4bit.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gemquant.core.protocols import (
    ArtifactHeader,
    Container,
    Layout,
    PlainSpec,
    QuantizedSpec,
    QuantizedWeight,
)
from gemquant.core.scheme import Scheme, describe
from gemquant.core.weights import (
    CodebookScheme,
    CodebookWeight,
    NestedScales,
    RowwiseScheme,
    RowwiseWeight,
)
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, listed
from gemquant.formats.packed import PackedFolder, experts_refused, mixed, plain_linears
from gemquant.formats.packed_weights import PackedLinear, module_of
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.numerics.bitsandbytes import (
    NESTED_BLOCK,
    codebook,
    dequantize_dynamic,
    dynamic_codebook,
)
from gemquant.numerics.packing import reinterpreted

LONGEST_FLOAT = len("-1.1754943508222875e-38")
STATE_LIMIT_BYTES = 4096


class BitsAndBytesLinear:
    """The tensors of one linear; satisfies ``PackedLinear``."""

    by_rows: ClassVar[bool] = False

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """The tensors in the file; the state's length does not depend on the weights."""
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
        """Refuse a weight that is not as announced, or whose scales are not finite."""
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
            raise TypeError(f"{type(weight).__name__} is not a weight of bitsandbytes.")
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
            raise TypeError(f"{scheme} is not a scheme of bitsandbytes.")
        state = _parsed(stored[_state_name(scheme.codes)])
        if state.get("shape") != list(spec.shape):
            raise ArtifactError(
                f"quant_state has {state.get('shape')}, the model {list(spec.shape)}."
            )
        scales, nested = stored["weight.absmax"], None
        if scheme.nested:
            nested = NestedScales(scales, stored["weight.nested_absmax"], state["nested_offset"])
            scales = dequantize_dynamic(nested.codes, nested.scales) + nested.offset
        packed = reinterpreted(stored["weight"].flatten(), torch.uint8)
        weight = CodebookWeight(scheme, spec.shape, packed, scales, nested)
        return weight if (start, stop) == (0, spec.shape[0]) else weight.rows(start, stop)


def _read_quant_state(stored: SafetensorsFiles, module: str, codes: str) -> Mapping[str, Any]:
    """Read a module's state; ValueError if it is missing or unreadable."""
    name = f"{module}.{_state_name(codes)}"
    if name not in stored.shapes:
        raise ValueError(f"{name} is missing")
    return _parsed(stored.tensor(name))


def _parsed(state: Tensor) -> Mapping[str, Any]:
    if state.ndim != 1 or state.dtype != torch.uint8 or state.numel() > STATE_LIMIT_BYTES:
        raise ValueError("quant_state is not a JSON document")
    parsed = json.loads(state.numpy().tobytes())
    if not isinstance(parsed, dict):
        raise TypeError("quant_state is not a JSON object")
    return parsed


def _state_name(codes: str) -> str:
    return f"weight.quant_state.bitsandbytes__{codes}"


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is not a torch type.")
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


@dataclass(frozen=True)
class BitsAndBytes(PackedFolder):
    """Exporter for ``quant_method: bitsandbytes``: scales in float32, the rest in bfloat16."""

    name: ClassVar[str] = "bitsandbytes"
    types: ClassVar[Container] = Container(torch.float32, torch.bfloat16)
    packing: ClassVar[PackedLinear] = BitsAndBytesLinear()
    holds_towers: ClassVar[bool] = True
    holds_embeddings: ClassVar[bool] = True
    skipped: ClassVar[str] = "llm_int8_skip_modules"
    # As vLLM and as transformers name them.
    tower_patterns: ClassVar[Sequence[str]] = ("{}", "model.{}")

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """One of bitsandbytes' data types for the whole model; vocabulary matrices plain."""
        problems = super().problems(header)
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        schemes = {spec.scheme for spec in quantized.values()}
        unsupported = sorted(
            describe(scheme)
            for scheme in schemes
            if not isinstance(scheme, (CodebookScheme, RowwiseScheme))
        )
        if unsupported:
            problems.append(
                UnsupportedError(
                    f"{self.name} stores LLM.int8, NF4 and FP4; asked for {listed(unsupported)}.",
                    hint="Leave --exporter out: the target chooses a container that holds it.",
                )
            )
            return problems
        problems += mixed(map(describe, schemes), self.name)
        problems += experts_refused(quantized, self.name)
        odd = [
            f"{module_of(name)} {spec.shape}"
            for name, spec in quantized.items()
            if isinstance(spec.scheme, CodebookScheme) and _remainder(spec.shape, spec.scheme)
        ]
        if odd:
            problems.append(
                UnsupportedError(
                    f"{self.name} packs two codes into a byte and bytes into the storage type; "
                    f"that leaves a remainder in {listed(odd)}.",
                    hint="Use --storage-dtype uint8, or leave the layers out with --skip.",
                )
            )
        return problems

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """Every key that transformers' BitsAndBytesConfig writes; plain linears are named."""
        schemes = [spec.scheme for spec in layout.values() if isinstance(spec, QuantizedSpec)]
        scheme = schemes[0] if schemes else RowwiseScheme(6.0)
        four = scheme if isinstance(scheme, CodebookScheme) else None
        return {
            "_load_in_4bit": four is not None,
            "_load_in_8bit": four is None,
            "bnb_4bit_compute_dtype": four.compute_dtype if four else "float32",
            "bnb_4bit_quant_storage": four.storage_dtype if four else "uint8",
            "bnb_4bit_quant_type": four.codes if four else "fp4",
            "bnb_4bit_use_double_quant": four.nested if four else False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["lm_head", *plain_linears(layout)],
            "llm_int8_threshold": scheme.threshold if isinstance(scheme, RowwiseScheme) else 6.0,
            "load_in_4bit": four is not None,
            "load_in_8bit": four is None,
            "quant_method": "bitsandbytes",
        }

    def scheme_of(
        self, quantization: Mapping[str, Any], stored: SafetensorsFiles, module: str
    ) -> Scheme:
        """The scheme of ``quantization_config`` and of the module's own state."""
        try:
            _require("quant_method", quantization["quant_method"], ("bitsandbytes",))
            if quantization["load_in_8bit"]:
                return RowwiseScheme(float(quantization["llm_int8_threshold"]))
            codes = quantization["bnb_4bit_quant_type"]
            _require("bnb_4bit_quant_type", codes, ("nf4", "fp4"))
            state = _read_quant_state(stored, module, codes)
            return CodebookScheme(
                codes,
                int(state["blocksize"]),
                bool(quantization["bnb_4bit_use_double_quant"]),
                str(quantization["bnb_4bit_compute_dtype"]),
                str(quantization["bnb_4bit_quant_storage"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"config.json: quantization_config of {module} is not bitsandbytes': {error}."
            ) from error


def _require(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}")


def _remainder(shape: tuple[int, int], scheme: CodebookScheme) -> bool:
    storage: torch.dtype = getattr(torch, scheme.storage_dtype)
    return bool(shape[1] % 2 or shape[0] * shape[1] // 2 % storage.itemsize)
