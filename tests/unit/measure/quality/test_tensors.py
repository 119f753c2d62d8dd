"""What single tensors of an artifact cost: the broken one is named first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.cli.evaluation_tables import print_document
from gemquant.core.artifact.evaluation import EvaluationDocument, TensorCost
from gemquant.core.artifact.losses import costliest
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.measure import Subject, measure
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import EVALUATION


class Rounded:
    """A checkpoint whose linears are rounded a little, and some tensors have another sign."""

    def __init__(self, checkpoint: Checkpoint, *broken: str) -> None:
        self._checkpoint, self._broken = checkpoint, broken
        self.config = checkpoint.config
        self.names, self.shape = checkpoint.names, checkpoint.shape
        self.stored_dtype = checkpoint.stored_dtype

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.rows(name, 0, self.shape(name)[0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        rows = self._checkpoint.rows(name, start, stop, dtype)
        if "_proj." in name and "per_layer" not in name:
            rows = (rows * 2**15).round() / 2**15
        return -rows if name in self._broken else rows


def costs(folder: Path, *broken: str) -> tuple[TensorCost, ...]:
    original = open_checkpoint(str(folder))
    subject = Subject("artifact", Rounded(original, *broken))
    ((level,),) = measure(original, [subject], EVALUATION, by_layer=True)
    return level.tensors


@pytest.mark.parametrize(
    ("kind", "broken", "named"),
    [
        ("gemma2", "layers.1.self_attn.o_proj", "model.layers.1.self_attn.o_proj"),
        ("gemma4_e", "layers.2.mlp.down_proj", "model.layers.2.mlp.down_proj"),
        ("gemma4_e", "embed_tokens_per_layer", "model.embed_tokens_per_layer"),
        ("gemma4_moe", "layers.1.experts.2.down_proj", "model.layers.1.experts.2"),
        ("gemma4_moe", "layers.2.mlp.up_proj", "model.layers.2.mlp.up_proj"),
    ],
)
def test_the_broken_tensor_is_named_first(
    tmp_path: Path, kind: Kind, broken: str, named: str
) -> None:
    found = costs(write_tiny_gemma(tmp_path / "model", kind), f"model.{broken}.weight")
    assert found[0].tensor == named
    assert found[0].kl_mean > 3 * found[1].kl_mean
    assert len(found) <= 9


def test_an_artifact_of_the_same_weights_costs_nothing(tmp_path: Path) -> None:
    original = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", "gemma4_moe")))
    ((level,),) = measure(original, [Subject("same", original)], EVALUATION, by_layer=True)
    assert level.tensors == ()


# ---------------------------------------------------------------- what to try

DOWN, EXPERT = "model.layers.3.mlp.down_proj", "model.layers.1.experts.5"
GATE_UP_EXPERTS = "--tensor-type 'blk.1.ffn_gate_up_exps.weight=Q8_0' "
DOWN_EXPERTS = "--tensor-type 'blk.1.ffn_down_exps.weight=Q8_0'"


def with_costs(
    quantizer: str, scheme: str, model_type: str, *tensors: tuple[str, float]
) -> EvaluationDocument:
    made = artifact(kl={"english": [1.0, 1.2]})
    costs = tuple(TensorCost(tensor=t, own_error=0.1, kl_mean=kl) for t, kl in tensors)
    level = made.levels[0].model_copy(update={"tensors": costs})
    update = {"quantizer": quantizer, "scheme": scheme, "levels": (level,)}
    found = document(made.model_copy(update=update))
    architecture = found.original.model_copy(update={"architecture": model_type})
    return found.model_copy(update={"original": architecture})


@pytest.mark.parametrize(
    ("quantizer", "scheme", "tensors", "advice"),
    [
        ("rtn", "w4", [(DOWN, 1.0), (EXPERT, 0.1)], "--skip 'layers.3.mlp.down_proj'"),
        ("awq", "w4", [(EXPERT, 1.0)], "--skip 'layers.1.experts.*'"),
        ("rtn", "w4", [("model.embed_tokens", 1.0)], "--no-quantize-embedding"),
        ("gguf", "Q4_K_M", [(DOWN, 1.0)], "--tensor-type 'blk.3.ffn_down.weight=Q8_0'"),
        ("gguf", "Q8_0", [(DOWN, 1.0)], "--tensor-type 'blk.3.ffn_down.weight=BF16'"),
        (
            "gguf",
            "Q4_K_M",
            [(EXPERT, 1.0)],
            GATE_UP_EXPERTS + DOWN_EXPERTS,
        ),
        (
            "gguf",
            "Q4_K_M",
            [("model.embed_tokens_per_layer", 1.0)],
            "--per-layer-embedding-type Q8_0",
        ),
    ],
)
def test_the_options_that_store_it_larger_are_printed(
    capsys: pytest.CaptureFixture[str],
    quantizer: str,
    scheme: str,
    tensors: Sequence[tuple[str, float]],
    advice: str,
) -> None:
    print_document(with_costs(quantizer, scheme, "gemma4_text", *tensors))
    printed = capsys.readouterr().out
    assert f"To lose less, make it again with {advice}" in printed.splitlines()


def test_a_large_divergence_says_how_to_find_the_tensors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_document(document(artifact("big", kl={"english": [1.0, 1.2]})))
    assert "gemquant eval big --by-layer" in capsys.readouterr().out
    print_document(document(artifact("small", kl={"english": [0.1, 0.2]})))
    assert "--by-layer" not in capsys.readouterr().out


def test_the_costliest_make_half_of_the_sum_and_are_four_at_most() -> None:
    def count(*divergences: float) -> int:
        made = [TensorCost(tensor=f"t{kl}", own_error=None, kl_mean=kl) for kl in divergences]
        return len(costliest(made))

    assert (count(), count(9, 1, 1), count(3, 2, 2, 1), count(*[1] * 12)) == (0, 1, 2, 4)
