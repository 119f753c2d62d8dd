"""Certificates as the Hub reads measurements: one entry of its model-index for each figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult

from gemquant.core.artifact.certificates import CertificateRecord, MeasurementRecord, SliceRecord
from gemquant.core.artifact.manifest import Manifest

DIGITS = 6
"""Significant digits; the manifest has all of them."""


def certificate_results(manifest: Manifest) -> list[EvalResult]:
    """Every figure of every level that was measured; the level is part of its name."""
    return [
        result
        for certificate in manifest.certificates
        if certificate.not_run is None and not _is_for_comparison(certificate, manifest)
        for each in certificate.slices
        for result in _slice_results(
            each, _level(certificate), certificate.runtime, certificate.token_stream
        )
    ]


def _is_for_comparison(certificate: CertificateRecord, manifest: Manifest) -> bool:
    """Whether it says what would have been lost without smoothing, not what is."""
    emulation = certificate.emulation
    return emulation is not None and manifest.smoothing is not None and not emulation.smoothing


def _level(certificate: CertificateRecord) -> str:
    """Name a level, and where it is a bracket the corner: figures of two must not look the same."""
    emulation = certificate.emulation
    if emulation is None:
        return certificate.level
    return f"{certificate.level}, activations {emulation.activations}, head {emulation.head}"


def eval_result(
    text: str,
    metric: tuple[str, str],
    value: float,
    *,
    level: str,
    revision: str | None,
    dataset_args: dict[str, Any],
    metric_args: dict[str, Any],
) -> EvalResult:
    """One figure.

    text: the slice. metric: the Hub's identifier, and words. revision: of the text.
    """
    identifier, words = metric
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type="gemquant-evaluation-text",
        dataset_name=f"gemquant evaluation text, {text}",
        dataset_config=text,
        dataset_revision=revision or None,
        dataset_args=dataset_args,
        metric_type=identifier,
        metric_name=f"{words} (level {level})",
        metric_config=level,
        metric_value=rounded(value),
        metric_args=metric_args,
    )


def rounded(value: float) -> float:
    """A figure with six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _slice_results(
    record: SliceRecord, level: str, runtime: str, token_stream: str
) -> Iterator[EvalResult]:
    figures: dict[tuple[str, str], MeasurementRecord] = {
        ("perplexity", "Perplexity after quantization"): record.perplexity_quantized,
        ("perplexity", "Perplexity of the original"): record.perplexity_original,
        ("kl_divergence", "KL divergence from the original, mean, nats"): record.kl_mean,
        ("kl_divergence", "KL divergence from the original, 99.9 %, nats"): record.kl_p999,
        ("top1_agreement", "Same first token as the original"): record.top1_agreement,
    }
    for metric, measured in figures.items():
        yield eval_result(
            record.slice,
            metric,
            measured.value,
            level=level,
            revision=token_stream,
            dataset_args={"windows": record.windows, "tokens": record.tokens},
            metric_args={"runtime": runtime, "standard_error": rounded(measured.standard_error)},
        )
