"""Several artifacts in one pass, and what stops being finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.measure import Subject, measure
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_job import EVALUATION


class Changed:
    """A checkpoint of which one tensor is another."""

    def __init__(self, checkpoint: Checkpoint, changed: str, factor: float) -> None:
        self._checkpoint, self._changed, self._factor = checkpoint, changed, factor
        self.config = checkpoint.config
        self.names, self.shape = checkpoint.names, checkpoint.shape
        self.stored_dtype = checkpoint.stored_dtype

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.rows(name, 0, self.shape(name)[0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        rows = self._checkpoint.rows(name, start, stop, dtype)
        return rows * self._factor if name == self._changed else rows


MIDDLE = "model.layers.1.mlp.gate_proj.weight"
NAN = float("nan")


@pytest.fixture
def original(tiny_folders: dict[Kind, Path]) -> Checkpoint:
    return open_checkpoint(str(tiny_folders["gemma2"]))


def measured(
    original: Checkpoint, *subjects: Changed | Checkpoint, by_layer: bool = False
) -> list[LevelEvaluation]:
    named = [Subject(f"artifact-{number}", weights) for number, weights in enumerate(subjects)]
    return [level for (level,) in measure(original, named, EVALUATION, by_layer=by_layer)]


def test_several_artifacts_in_one_pass_are_measured_as_one_by_one(original: Checkpoint) -> None:
    subjects = [Changed(original, MIDDLE, factor) for factor in (1.1, 1.5)]
    together = measured(original, *subjects, by_layer=True)
    for subject, one in zip(subjects, together, strict=True):
        (alone,) = measured(original, subject, by_layer=True)
        assert one == alone


def test_the_layer_that_differs_is_the_one_with_an_error_of_its_own(original: Checkpoint) -> None:
    (level,) = measured(original, Changed(original, MIDDLE, 1.5), by_layer=True)
    assert len(level.layers_own) == len(EVALUATION)
    for own, accumulated in zip(level.layers_own, level.layers_accumulated, strict=True):
        assert [relative > 0 for relative in own.relative] == [False, True, False]
        assert own.cosine[1] < 1.0
        # The error propagates to later layers; those before have none.
        assert [relative > 0 for relative in accumulated.relative] == [False, True, True]
        assert (accumulated.relative[1], accumulated.cosine[1]) == (own.relative[1], own.cosine[1])


def test_layers_own_errors_are_left_out_unless_asked_for(original: Checkpoint) -> None:
    (level,) = measured(original, original)
    assert level.layers_own == ()
    assert [errors.slice for errors in level.layers_accumulated] == ["first", "second"]
    assert level.layers_accumulated[0].relative == (0.0, 0.0, 0.0)
    assert level.layers_accumulated[0].cosine == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ("model.embed_tokens.weight", "in the embedding"),
        (MIDDLE, "in decoder layer 1"),
        ("model.norm.weight", "at the head"),
    ],
)
@pytest.mark.parametrize("factor", [NAN, float("inf")])
def test_an_artifact_whose_values_stop_being_finite_is_refused_by_name_slice_and_layer(
    original: Checkpoint, changed: str, where: str, factor: float
) -> None:
    broken = Changed(original, changed, factor)
    with pytest.raises(ArtifactError) as refused:
        measured(original, Changed(original, MIDDLE, 1.1), broken)
    message = (
        f"artifact-1: its values stop being finite {where} (slice first); the original's do not."
    )
    assert refused.value.message == message


def test_an_original_whose_values_are_not_finite_is_not_blamed_on_the_artifact(
    original: Checkpoint,
) -> None:
    broken = Changed(original, MIDDLE, NAN)
    with pytest.raises(
        UnsupportedError, match="The original's values stop being finite in decoder"
    ):
        measure(broken, [Subject("artifact", original)], EVALUATION)
