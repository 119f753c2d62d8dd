from __future__ import annotations

import math

import pytest
import torch

from gemquant.errors import ArtifactError
from gemquant.measure.quality.embeddings import compare_embeddings, embedded
from tests.helpers.tiny_windows import tiny_windows

AXES = torch.eye(4)


def turned(vector: torch.Tensor, to: torch.Tensor, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return vector * math.cos(angle) + to * math.sin(angle)


def test_an_embedding_is_the_mean_through_the_dense_modules_of_length_one() -> None:
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 8.0]]])  # mean (2, 4)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    wide = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # (4, 2) to (12, 4)
    found = embedded(hidden, [swap, wide])
    assert found[0].tolist() == pytest.approx([12 / math.sqrt(160), 4 / math.sqrt(160)])


def test_equal_embeddings_agree_in_everything() -> None:
    vectors = torch.cat([AXES, AXES.flip(0)])
    (found,) = compare_embeddings([tiny_windows(8)], vectors, vectors, seed=0, artifact="a")
    figures = (found.cosine_mean, found.cosine_p01, found.top1, found.overlap, found.spearman)
    assert [each.value for each in figures] == pytest.approx([1.0] * 5)
    assert found.documents == 4


def test_cosines_are_of_texts_and_ranks_of_queries_among_the_documents_of_all_slices() -> None:
    first, second, third, _ = AXES
    # Query, document, query, document; the queries lie nearest to their own documents.
    original = torch.stack([first, turned(first, third, 10), second, turned(second, third, 20)])
    # The first query turns to the other's document.
    other = original.clone()
    other[0] = turned(first, second, 60)
    slices = [tiny_windows(2, name="one"), tiny_windows(2, name="two")]
    one, two = compare_embeddings(slices, original, other, seed=0, artifact="a")
    assert one.texts.cosine == pytest.approx((0.5, 1.0))
    assert one.cosine_mean.value == pytest.approx(0.75)
    assert (one.documents, two.documents) == (2, 2)
    assert one.texts.top1 == (0.0,)
    assert one.texts.spearman == pytest.approx((-1.0,))
    assert two.texts.top1 == (1.0,)
    assert two.texts.spearman == pytest.approx((1.0,))
    assert one.texts.overlap == (1.0,)  # of two documents both are among the first ten


def test_values_that_are_no_numbers_are_the_artifacts_fault() -> None:
    other = AXES.clone()
    other[1, 1] = torch.nan
    with pytest.raises(ArtifactError, match="nf4: its embeddings are not finite"):
        compare_embeddings([tiny_windows(4)], AXES, other, seed=0, artifact="nf4")
