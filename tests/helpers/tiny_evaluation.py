"""Evaluation documents with invented figures, for what reads them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    Interval,
    LayerErrors,
    LevelEvaluation,
    OriginalRecord,
    SliceEvaluation,
    SuiteRecord,
    WindowColumns,
)


def around(value: float, width: float = 0.1) -> Interval:
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def measured_slice(name: str, *, kl: Sequence[float], nll: float = 3.0) -> SliceEvaluation:
    """One window of 511 tokens for each mean divergence; the likelihood falls by half of it."""
    mean = sum(kl) / len(kl)
    return SliceEvaluation(
        slice=name,
        seq_len=512,
        token_stream="sha256:" + "2" * 64,
        windows=WindowColumns(
            tokens=(511,) * len(kl),
            nll_original=(nll,) * len(kl),
            nll_quantized=tuple(nll + each / 2 for each in kl),
            kl_mean=tuple(kl),
            top1=tuple(max(0.0, 1 - each) for each in kl),
            top5=tuple(max(0.0, 1 - each / 2) for each in kl),
        ),
        perplexity_original=around(20.0),
        perplexity_quantized=around(22.0),
        nll_increase=around(mean / 2),
        kl_mean=around(mean),
        kl_median=around(mean / 3),
        kl_p99=around(mean * 8),
        kl_p999=around(mean * 15),
        kl_max=3.0,
        top1=around(max(0.0, 1 - mean)),
        top5=around(max(0.0, 1 - mean / 2)),
    )


def artifact(
    name: str = "gemma-awq",
    *,
    kl: Mapping[str, Sequence[float]],
    size_bytes: int = 1_000_000,
    layers: int = 4,
) -> ArtifactEvaluation:
    """One artifact at level reference. kl: slice → mean divergence of each window."""
    errors = tuple(
        LayerErrors(
            slice=each,
            relative=tuple(0.01 * (number + 1) for number in range(layers)),
            cosine=tuple(1 - 0.001 * (number + 1) for number in range(layers)),
        )
        for each in kl
    )
    return ArtifactEvaluation(
        name=name,
        container="compressed-tensors",
        quantizer="awq",
        scheme="w4 g128",
        digest="sha256:" + "3" * 64,
        size_bytes=size_bytes,
        bits_per_weight=4.5,
        levels=(
            LevelEvaluation(
                level="reference",
                runtime="torch 2.13.0; float32 on cpu",
                slices=tuple(measured_slice(each, kl=values) for each, values in kl.items()),
                layers_accumulated=errors,
            ),
        ),
    )


def document(*artifacts: ArtifactEvaluation, windows: int = 8, seed: int = 0) -> EvaluationDocument:
    """A document of the artifacts given, or of one with two slices of noisy windows."""
    noise = random.Random(seed)
    if not artifacts:
        kl = {
            name: [0.1 + noise.gauss(0, 0.01) for _ in range(windows)]
            for name in ("english", "code")
        }
        artifacts = (artifact(kl=kl),)
    return EvaluationDocument(
        gemquant="0.1.0",
        suite=SuiteRecord(name="default", version=1, token_stream="sha256:" + "4" * 64),
        original=OriginalRecord(
            ref="google/gemma-3-270m",
            architecture="gemma3_text",
            base_model="google/gemma-3-270m",
            digest="sha256:" + "5" * 64,
        ),
        settings={"dtype": "float32", "device": "cpu", "seed": 0},
        machine="6" * 64,
        artifacts=artifacts,
    )
