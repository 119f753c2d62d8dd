"""Compare two finished models by streaming both, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows
from gemquant.errors import UnsupportedError
from gemquant.evaluation.divergence import Table
from gemquant.evaluation.native import NativeRuntime
from gemquant.evaluation.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.gemma.skeleton import Skeleton
from gemquant.gemma.structure import layer_parameters, layer_prefix
from gemquant.numerics.products import fast_products
from gemquant.progress import Progress, Silence
from gemquant.protocols import Weights
from gemquant.results import Certificate

# A quantized model may untie its head; everything else decides what is computed.
SAME = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


@fast_products()
def compare(
    original: Weights,
    quantized: Weights,
    evaluation: Sequence[TokenWindows],
    *,
    runtime: NativeRuntime | None = None,
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[Certificate]:
    """Measure what was lost: level ``reference``, and ``native`` where a runtime is given.

    runtime: executes the finished artifact by foreign code; it holds the whole model.
    UnsupportedError if the two models are not the same architecture.
    """
    progress = progress or Silence()
    _require_same_architecture(original, quantized)
    skeleton = Skeleton(original.config, device=device, dtype=compute_dtype)
    streams = EvaluationStreams(skeleton, evaluation)
    streams.embed(original, [(quantized, None)])
    names = layer_parameters(original.config)
    progress.start("evaluating layers", skeleton.layers)
    for index in range(skeleton.layers):
        for stream, weights in ((streams.original, original), (streams.candidates[0], quantized)):
            assert stream is not None
            stream.advance(index, layer_weights(weights, layer_prefix(index), names, skeleton))
        progress.advance("evaluating layers")
    models = [
        (final_norm(weights, skeleton), head_table(weights, skeleton))
        for weights in (original, quantized)
    ]
    progress.note("comparing predictions")
    before, after = streams.predictors(models)
    (slices,) = streams.score(before, [after])
    certificates = [Certificate("reference", reference_runtime(skeleton), slices, streams.digest)]
    if runtime is not None:
        certificates.append(_native(runtime, streams, models, progress))
    return certificates


def _native(
    runtime: NativeRuntime,
    streams: EvaluationStreams,
    models: Sequence[tuple[Tensor, Table]],
    progress: Progress,
) -> Certificate:
    if runtime.not_run is not None:
        return Certificate("native", runtime.runtime, (), streams.digest, runtime.not_run)
    streams = streams.beginnings(tokens=runtime.max_tokens, window=runtime.max_window)
    progress.note(f"running {runtime.runtime}")
    before, after = streams.predictors(models)
    slices, from_reference = streams.score_foreign(before, after, runtime.predictions(streams))
    return Certificate(
        "native", runtime.runtime, slices, streams.digest, kl_from_reference=from_reference
    )


def _require_same_architecture(original: Weights, quantized: Weights) -> None:
    differing = [key for key in SAME if original.config[key] != quantized.config[key]]
    if differing:
        told = ", ".join(f"{k} {original.config[k]} and {quantized.config[k]}" for k in differing)
        raise UnsupportedError(
            f"The two models cannot be compared: {told}.",
            hint="Name the artifact's own base model with --against.",
        )
