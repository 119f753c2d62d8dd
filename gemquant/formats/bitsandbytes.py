"""Pre-quantized bitsandbytes checkpoints: what transformers loads with no flags.

LLM.int8: ``weight`` int8 (out, in), ``SCB`` float32 (out), ``weight_format`` uint8 scalar.
NF4 and FP4: ``weight`` (out · in / 2, 1) in bytes, ``weight.absmax``, ``weight.quant_map`` float32
(16), ``weight.quant_state.bitsandbytes__nf4``, a JSON document; where scales are quantized too,
``absmax`` is uint8, with ``weight.nested_absmax`` and ``weight.nested_quant_map`` (256) in float32.

Source: bitsandbytes 0.50 ``QuantState.as_dict`` and ``Linear8bitLt._save_to_state_dict``;
transformers 5.23 ``quantizers/quantizer_bnb_4bit.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gemquant.core.protocols import ArtifactHeader, Container, Layout, PlainSpec, QuantizedSpec
from gemquant.core.scheme import Scheme, describe
from gemquant.core.weights import CodebookScheme, RowwiseScheme
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.bitsandbytes_linear import (
    BitsAndBytesLinear,
    is_held,
    read_quant_state,
)
from gemquant.formats.limits import listed, quantized_tables
from gemquant.formats.packed_folder import PackedFolder
from gemquant.formats.packed_linear import PackedLinear, module_of
from gemquant.formats.packed_weights import SchemeReader
from gemquant.formats.safetensors.mapped import MappedSafetensors
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.structure import EMBEDDING, HEAD


@dataclass(frozen=True)
class BitsAndBytes(PackedFolder):
    """Exporter for ``quant_method: bitsandbytes``; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "bitsandbytes"
    packing: ClassVar[PackedLinear] = BitsAndBytesLinear()

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """Scales in float32, everything that is not quantized in Gemma's own bfloat16."""
        return Container(scale_dtype=torch.float32, float_dtype=torch.bfloat16)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """One of its own data types for the whole model, tables in floating point."""
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        problems: list[GemquantError] = [*quantized_tables(quantized, (EMBEDDING, HEAD), self.name)]
        schemes = list(dict.fromkeys(spec.scheme for spec in quantized.values()))
        foreign = [describe(scheme) for scheme in schemes if not is_held(scheme)]
        if foreign:
            problems.append(
                UnsupportedError(
                    f"{self.name} stores LLM.int8, NF4 and FP4; asked for {listed(foreign)}.",
                    hint="Leave --exporter out: the target chooses a container that holds it.",
                )
            )
            return problems
        if len(schemes) > 1:
            problems.append(
                UnsupportedError(
                    f"{self.name} holds one scheme for the whole model; asked for "
                    f"{listed([describe(scheme) for scheme in schemes])}."
                )
            )
        odd = [
            f"{module_of(name)} {spec.shape}"
            for name, spec in quantized.items()
            if isinstance(spec.scheme, CodebookScheme) and _does_not_pack(spec.shape, spec.scheme)
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

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """The model's own configuration, and how its layers are quantized."""
        quantization = quantization_config(header.layout)
        return runtime_config(header.config, torch.bfloat16, quantization)

    @property
    def scheme_reader(self) -> SchemeReader:
        """Of this container."""
        return scheme_reader


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return every key that transformers' BitsAndBytesConfig writes; plain linears are named."""
    schemes = [spec.scheme for spec in layout.values() if isinstance(spec, QuantizedSpec)]
    scheme = schemes[0] if schemes else RowwiseScheme(6.0)
    plain = [
        module_of(name)
        for name, spec in layout.items()
        if isinstance(spec, PlainSpec) and len(spec.shape) == 2 and name not in (EMBEDDING, HEAD)
    ]
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
        "llm_int8_skip_modules": ["lm_head", *plain],
        "llm_int8_threshold": scheme.threshold if isinstance(scheme, RowwiseScheme) else 6.0,
        "load_in_4bit": four is not None,
        "load_in_8bit": four is None,
        "quant_method": "bitsandbytes",
    }


def scheme_reader(
    quantization: Mapping[str, Any], stored: MappedSafetensors, module: str
) -> Scheme:
    """Return the scheme of a module from ``quantization_config`` and the module's own state."""
    try:
        _require("quant_method", quantization["quant_method"], ("bitsandbytes",))
        if quantization["load_in_8bit"]:
            return RowwiseScheme(float(quantization["llm_int8_threshold"]))
        codes = quantization["bnb_4bit_quant_type"]
        _require("bnb_4bit_quant_type", codes, ("nf4", "fp4"))
        state = read_quant_state(stored, module, codes)
        return CodebookScheme(
            codes,
            int(state["blocksize"]),
            bool(quantization["bnb_4bit_use_double_quant"]),
            str(quantization["bnb_4bit_compute_dtype"]),
            str(quantization["bnb_4bit_quant_storage"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"config.json: quantization_config of {module} is not that of bitsandbytes: {error}."
        ) from error


def _require(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}")


def _does_not_pack(shape: tuple[int, int], scheme: CodebookScheme) -> bool:
    storage: torch.dtype = getattr(torch, scheme.storage_dtype)
    return bool(shape[1] % 2 or shape[0] * shape[1] // 2 % storage.itemsize)
