"""The certificate afterwards, against a plain transformers loop over the same windows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.core.artifact.evaluation import Interval
from gemquant.errors import UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.measure import compare
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import EVALUATION
from tests.helpers.tiny_windows import tiny_windows


def log_probabilities(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Plain transformers, one window at a time: (windows, tokens, vocabulary) float64."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**checkpoint.config), dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits = torch.cat([model.eval()(window[None]).logits for window in ids])
    return torch.log_softmax(logits[:, :-1].double(), -1)


def mean_nll(log_p: Tensor, ids: Tensor) -> float:
    return -float(log_p.gather(-1, ids[:, 1:, None]).mean())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_figures_are_those_of_a_plain_loop(tmp_path: Path, generation: Kind, tied: bool) -> None:
    first = open_checkpoint(str(write_tiny_gemma(tmp_path / "a", generation, tied=tied)))
    second = open_checkpoint(str(write_tiny_gemma(tmp_path / "b", generation, tied=tied, seed=0)))
    perturbed = _Perturbed(second)
    (certificate,) = compare(first, perturbed, EVALUATION)
    assert certificate.level == "reference"
    assert [result.slice for result in certificate.slices] == ["first", "second"]
    for windows, result in zip(EVALUATION, certificate.slices, strict=True):
        p, q = log_probabilities(first, windows.ids), log_probabilities(perturbed, windows.ids)
        assert (result.window_count, result.token_count) == (
            len(windows.ids),
            p.shape[0] * p.shape[1],
        )
        for measured, log_p in ((result.perplexity_original, p), (result.perplexity_quantized, q)):
            assert measured.value == pytest.approx(math.exp(mean_nll(log_p, windows.ids)), rel=1e-3)
        divergence = (p.exp() * (p - q)).sum(-1)
        assert result.kl_mean.value == pytest.approx(float(divergence.mean()), rel=1e-3)
        tail = float(torch.quantile(divergence.flatten(), 0.999))
        assert result.kl_p999.value == pytest.approx(tail, rel=2e-3)
        agreement = (p.argmax(-1) == q.argmax(-1)).double()
        assert result.top1.value == pytest.approx(float(agreement.mean()), abs=0.01)


class _Perturbed:
    """A model whose linears are a little off."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config = checkpoint.config
        self.names, self.shape = checkpoint.names, checkpoint.shape
        self.stored_dtype, self.rows = checkpoint.stored_dtype, checkpoint.rows

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self._checkpoint.tensor(name, dtype)
        if not name.endswith("_proj.weight"):
            return tensor
        return tensor + 0.02 * tensor.std() * torch.sin(torch.arange(tensor.numel())).view_as(
            tensor
        )


def test_a_model_against_itself_loses_nothing(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_folder))
    (certificate,) = compare(checkpoint, checkpoint, EVALUATION)
    for result in certificate.slices:
        assert result.kl_mean == Interval(value=0.0, low=0.0, high=0.0)
        assert result.top1 == Interval(value=1.0, low=1.0, high=1.0)
        assert result.perplexity_original == result.perplexity_quantized


def test_the_certificate_names_what_computed_it_and_on_which_tokens(
    tiny_folders: dict[Kind, Path],
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma2"]))
    (certificate,) = compare(checkpoint, checkpoint, EVALUATION[:1], compute_dtype=torch.bfloat16)
    version = torch.__version__.partition("+")[0]
    assert certificate.runtime == f"torch {version}; bfloat16 on cpu"
    assert certificate.slices[0].token_stream == EVALUATION[0].digest


def test_another_architecture_cannot_be_compared(tiny_folders: dict[Kind, Path]) -> None:
    first, second = (open_checkpoint(str(tiny_folders[kind])) for kind in ("gemma2", "gemma3_text"))
    with pytest.raises(UnsupportedError, match="model_type gemma2 and gemma3_text"):
        compare(first, second, EVALUATION)


def test_the_multimodal_text_tower_is_compared_as_the_text_model(
    tiny_folders: dict[Kind, Path],
) -> None:
    text, tower = (open_checkpoint(str(tiny_folders[kind])) for kind in ("gemma3_text", "gemma3"))
    (certificate,) = compare(text, tower, [tiny_windows(2, 30)])
    assert certificate.slices[0].kl_mean.value == 0.0
