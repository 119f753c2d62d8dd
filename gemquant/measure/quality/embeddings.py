"""Embeddings of the evaluation texts by an original and its artifacts, and how they compare.

Every other text of a slice is a query, the rest are documents: they are tokenized with the model's
prompts so. Each query ranks the documents of all slices by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact.evaluation import EmbeddingEvaluation, Interval, TextColumns
from gemquant.core.protocols import RowSource
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.measure.quality.figures import mean_over_windows, quantile_over_windows
from gemquant.models.structure import DENSE_MODULES

OVERLAP = 10
LOWEST = 0.01


def dense_modules(source: RowSource, config: Mapping[str, Any]) -> list[Tensor]:
    """Weights of the Dense modules of a configuration, float32, (out, in), in order."""
    names = [f"{name}.weight" for name in config[DENSE_MODULES]]
    return [source.rows(n, 0, source.shape(n)[0]).float() for n in names]


def embedded(hidden: Tensor, dense: Sequence[Tensor]) -> Tensor:
    """Embeddings of final hidden states (texts, tokens, hidden): (texts, features) float32."""
    return through_dense(hidden.float().mean(1), dense)


def through_dense(pooled: Tensor, dense: Sequence[Tensor]) -> Tensor:
    """Pooled states after the Dense modules, of length 1."""
    for weight in dense:
        pooled = linear(pooled, weight.to(pooled.device))
    return normalize(pooled.cpu())


@dataclass(frozen=True)
class TextScores:
    """An artifact's embeddings of one slice against the original's.

    cosine: (texts,). top1, overlap, spearman: (queries,): whether both rank one document first; the
    share of the original's ten first documents among the artifact's ten; the correlation of ranks.
    """

    cosine: Tensor
    top1: Tensor
    overlap: Tensor
    spearman: Tensor


def compare_embeddings(
    slices: Sequence[TokenWindows], original: Tensor, other: Tensor, *, seed: int, artifact: str
) -> tuple[EmbeddingEvaluation, ...]:
    """Summarise embeddings (texts of all slices, features) of unit length, slice by slice.

    UnsupportedError where the original's are not finite, ArtifactError for the artifact's.
    """
    for vectors, error in (
        (original, UnsupportedError("The original's embeddings are not finite.")),
        (other, ArtifactError(f"{artifact}: its embeddings are not finite.")),
    ):
        if not torch.isfinite(vectors).all():
            raise error
    counts = [windows.ids.shape[0] for windows in slices]
    parts = list(zip(original.split(counts), other.split(counts), strict=True))
    documents = [torch.cat([pair[side][1::2] for pair in parts]) for side in (0, 1)]
    found = []
    for windows, pair in zip(slices, parts, strict=True):
        ours, theirs = (v[::2] @ d.T for v, d in zip(pair, documents, strict=True))
        found.append(_slice(windows, _scores(*pair, ours, theirs), documents[0].shape[0], seed))
    return tuple(found)


def _scores(original: Tensor, other: Tensor, ours: Tensor, theirs: Tensor) -> TextScores:
    """Compare embeddings (texts, features), and similarities (queries, documents)."""
    first = min(OVERLAP, ours.shape[1])
    best, others = (each.topk(first, 1).indices for each in (ours, theirs))
    shared = (best[:, :, None] == others[:, None, :]).any(2).double().mean(1)
    ranks = [each.argsort(1).argsort(1).double() for each in (ours, theirs)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    spread = centred[0].square().sum(1)  # that of both: no rank occurs twice
    return TextScores(
        cosine=torch.cosine_similarity(original.double(), other.double()),
        top1=(best[:, 0] == others[:, 0]).double(),
        overlap=shared,
        spearman=(centred[0] * centred[1]).sum(1) / spread
        if ours.shape[1] > 1
        else torch.ones(ours.shape[0], dtype=torch.float64),
    )


def _slice(
    windows: TokenWindows, scores: TextScores, documents: int, seed: int
) -> EmbeddingEvaluation:
    def mean(values: Tensor) -> Interval:
        return mean_over_windows(values, len(values), seed=seed)

    return EmbeddingEvaluation(
        slice=windows.name,
        seq_len=windows.ids.shape[1],
        token_stream=windows.digest,
        documents=documents,
        texts=TextColumns(**{f.name: getattr(scores, f.name).tolist() for f in fields(scores)}),
        cosine_mean=mean(scores.cosine),
        cosine_p01=quantile_over_windows(scores.cosine, LOWEST, seed=seed),
        top1=mean(scores.top1),
        overlap=mean(scores.overlap),
        spearman=mean(scores.spearman),
    )
