"""The manifest of an RKLLM artifact: what the toolkit was given, and what is known of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from gemquant.convert.manifest_facts import calibration_record, library_versions, source_record
from gemquant.core.affine_weight import AffineScheme
from gemquant.core.artifact import (
    CallRecord,
    CertificateRecord,
    ConversionRecord,
    Manifest,
    SmoothingRecord,
    quantization_record,
)
from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec
from gemquant.core.recipe import Recipe
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.structure import layer_prefix, linear_shapes, tensor_shapes
from gemquant.rockchip.rkllm_file import size_range
from gemquant.rockchip.rkllm_rules import Conversion

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows

CONTAINER = "rkllm"


class ConvertResult(BaseModel):
    """What the program answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls: tuple[CallRecord, ...]
    python: str
    versions: dict[str, str]


def rkllm_manifest(
    recipe: Recipe,
    conversion: Conversion,
    checkpoint: Checkpoint,
    result: ConvertResult,
    *,
    file_bytes: int,
    windows: TokenWindows | None,
    smoothing: SmoothingRecord | None,
    certificates: tuple[CertificateRecord, ...],
) -> Manifest:
    """Describe a converted file. windows: what codes or scales made here were calibrated on."""
    least, most = size_range(conversion, checkpoint.config)
    return Manifest(
        container=CONTAINER,
        architecture=checkpoint.config["model_type"],
        base_model=checkpoint.provenance.base_model,
        license=checkpoint.provenance.license,
        source=source_record(checkpoint),
        recipe=recipe.to_dict(),
        quantization=quantization_record(
            CONTAINER,
            _layout(conversion, checkpoint.config),
            float_dtype="float16",
            file_bytes=file_bytes,
        ),
        calibration=calibration_record(windows),
        conversion=ConversionRecord(
            tool=conversion.toolkit.name,
            version=conversion.release.version,
            python=result.python,
            platform=conversion.npu.platform,
            dtype=conversion.dtype.name,
            runtime=conversion.release.version,
            driver=conversion.release.driver,
            calls=result.calls,
            least_bytes=least,
            most_bytes=most,
        ),
        smoothing=smoothing,
        certificates=certificates,
        libraries={
            **library_versions(),
            **{f"toolkit: {n}": v.partition("+")[0] for n, v in sorted(result.versions.items())},
        },
    )


def _layout(conversion: Conversion, config: Mapping[str, Any]) -> Layout:
    """What was asked for of each linear; which a hybrid rate picks is the toolkit's secret."""
    import torch

    dtype = conversion.dtype
    scheme = AffineScheme(dtype.weight_bits, dtype.group_size, symmetric=True)
    linears = {
        f"{layer_prefix(index)}{name}.weight": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in linear_shapes(config).items()
    }
    return {
        name: QuantizedSpec(linears[name], scheme)
        if name in linears
        else PlainSpec(shape, torch.float16)
        for name, shape in tensor_shapes(config).items()
    }
