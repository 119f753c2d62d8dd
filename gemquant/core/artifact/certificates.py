"""Certificates in ``manifest.json``: what was lost, by slice, at one level each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gemquant.core.json_document import Record

if TYPE_CHECKING:
    from gemquant.core.results import Certificate, Measurement, SliceResult


class MeasurementRecord(Record):
    """A mean with its standard error."""

    value: float = Field(description="Mean over tokens.")
    standard_error: float = Field(
        ge=0, description="Standard error over windows; 0 where there is only one."
    )


class SliceRecord(Record):
    """Original against quantized on one evaluation slice, the same tokens for both."""

    slice: str = Field(description="Name of the evaluation slice.")
    windows: int = Field(ge=1, description="Number of windows.")
    tokens: int = Field(ge=1, description="Number of predicted tokens.")
    perplexity_original: MeasurementRecord = Field(description="Perplexity before.")
    perplexity_quantized: MeasurementRecord = Field(description="Perplexity after.")
    kl_mean: MeasurementRecord = Field(
        description="Mean Kullback-Leibler divergence from the original, nats per token."
    )
    kl_p999: MeasurementRecord = Field(
        description="99.9th percentile of that divergence, nats per token."
    )
    top1_agreement: MeasurementRecord = Field(
        description="Fraction of tokens where both rank the same token first."
    )


class EmulationRecord(Record):
    """A corner of the bracket that an emulation is."""

    dtype: str = Field(description="What is emulated: `w8a8`, `w8a8_g128`, …")
    activations: Literal["per token", "per tensor"] = Field(
        description="What shares a scale: each token's inputs, or those of all tokens of a window."
    )
    head: Literal["float16", "int8"] = Field(description="Type of the output head.")
    smoothing: bool = Field(
        description="Activation outliers were folded into the weights first. Where an artifact has "
        "both, the corners without are there for comparison: what it would lose otherwise."
    )


class CertificateRecord(Record):
    """What was lost, measured at one level. Levels are never mixed."""

    level: Literal["reference", "native", "emulated", "vendor-sim"] = Field(
        description="`reference`: decoded weights in torch. `native`: in the runtime that the "
        "container is made for. `emulated`: a model of a device's arithmetic. `vendor-sim`: the "
        "vendor's own simulator."
    )
    runtime: str = Field(description="What computed the logits, with its version.")
    slices: tuple[SliceRecord, ...] = Field(default=(), description="One result per slice.")
    token_stream: str = Field(default="", description="`sha256:` of the evaluation tokens.")
    not_run: str | None = Field(
        default=None, description="Why this level was not measured; null if it was."
    )
    kl_from_reference: MeasurementRecord | None = Field(
        default=None,
        description="Mean divergence of this level's predictions from level `reference`'s, over "
        "one window of every slice: what the runtime's own arithmetic changes. Nats per token.",
    )
    emulation: EmulationRecord | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="Which corner of the bracket; left out at other levels.",
    )


def emulated_corners(certificates: Sequence[CertificateRecord]) -> list[CertificateRecord]:
    """The corners of the bracket at level ``emulated``, which are read together."""
    return [each for each in certificates if each.emulation is not None]


def certificate_record(certificate: Certificate) -> CertificateRecord:
    """Convert a measured certificate for the manifest."""
    return CertificateRecord(
        level=certificate.level,
        runtime=certificate.runtime,
        slices=tuple(map(_slice_record, certificate.slices)),
        token_stream=certificate.token_stream,
        not_run=certificate.not_run,
        kl_from_reference=None
        if certificate.kl_from_reference is None
        else _measurement(certificate.kl_from_reference),
        emulation=None
        if certificate.emulation is None
        else EmulationRecord(**dataclasses.asdict(certificate.emulation)),
    )


def _slice_record(result: SliceResult) -> SliceRecord:
    return SliceRecord(
        slice=result.slice,
        windows=result.windows,
        tokens=result.tokens,
        perplexity_original=_measurement(result.perplexity_original),
        perplexity_quantized=_measurement(result.perplexity_quantized),
        kl_mean=_measurement(result.kl_mean),
        kl_p999=_measurement(result.kl_p999),
        top1_agreement=_measurement(result.top1_agreement),
    )


def _measurement(measurement: Measurement) -> MeasurementRecord:
    return MeasurementRecord(value=measurement.value, standard_error=measurement.standard_error)
