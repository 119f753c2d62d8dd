"""Compare two finished models by streaming both, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gemquant.calibration.stream import layer_weights
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.errors import UnsupportedError
from gemquant.evaluation.native import NativeRuntime
from gemquant.evaluation.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.gemma.skeleton import Skeleton
from gemquant.gemma.structure import layer_parameters, layer_prefix
from gemquant.protocols import Certificate, Progress, Silence, Weights

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
    before, after = streams.predictors(
        [
            (final_norm(weights, skeleton), head_table(weights, skeleton))
            for weights in (original, quantized)
        ]
    )
    others = [after]
    if runtime is not None and runtime.not_run is None:
        progress.note(f"running {runtime.runtime}")
        others.append(streams.foreign(runtime.hidden_states(streams.ids), runtime.table))
    progress.note("comparing predictions")
    results = streams.score(before, others)
    token_stream = stream_digest([windows.ids for windows in evaluation])
    certificates = [Certificate("reference", reference_runtime(skeleton), results[0], token_stream)]
    if runtime is not None:
        certificates.append(
            Certificate("native", runtime.runtime, (), token_stream, runtime.not_run)
            if len(results) == 1
            else Certificate(
                "native",
                runtime.runtime,
                results[1],
                token_stream,
                kl_from_reference=streams.divergence(after, others[1]),
            )
        )
    return certificates


def _require_same_architecture(original: Weights, quantized: Weights) -> None:
    differing = [key for key in SAME if original.config[key] != quantized.config[key]]
    if differing:
        told = ", ".join(f"{k} {original.config[k]} and {quantized.config[k]}" for k in differing)
        raise UnsupportedError(
            f"The two models cannot be compared: {told}.",
            hint="Name the artifact's own base model with --against.",
        )
