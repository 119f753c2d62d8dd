"""All figures of a slice against plain transformers in float64, on every generation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.measure import Subject, measure
from gemquant.measure.quality.slices import level_evaluations
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import EVALUATION

NEAR = 0.05


class Near:
    """A checkpoint whose linears are a little off."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config, self.names = checkpoint.config, checkpoint.names
        self.shape, self.stored_dtype = checkpoint.shape, checkpoint.stored_dtype
        self.rows = checkpoint.rows

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self._checkpoint.tensor(name, dtype)
        if not name.endswith("_proj.weight"):
            return tensor
        off = torch.sin(torch.arange(tensor.numel())).view_as(tensor)
        return tensor + NEAR * tensor.std() * off


def log_probabilities(weights: Checkpoint | Near, ids: Tensor) -> Tensor:
    """Plain transformers, all of it in float64: (windows, predicted tokens, vocabulary)."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**weights.config), dtype=torch.float64, attn_implementation="eager"
    )
    state = {name: weights.tensor(name, torch.float32).double() for name in weights.names()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits = torch.cat([model.eval()(window[None]).logits for window in ids])
    return torch.log_softmax(logits[:, :-1].double(), -1)


def tied(log_p: Tensor) -> Tensor:
    """Tokens whose two likeliest float32 cannot tell apart: mostly of Gemma 2, at its cap."""
    best = log_p.topk(2).values
    return best[..., 0] - best[..., 1] < 1e-5


def five(log_p: Tensor) -> list[set[int]]:
    return [set(row.topk(5).indices.tolist()) for row in log_p.flatten(0, 1)]


def test_every_figure_is_that_of_plain_transformers_in_float64(
    tmp_path: Path, generation: Kind
) -> None:
    original = open_checkpoint(str(write_tiny_gemma(tmp_path / "tiny", generation)))
    near = Near(original)
    (measured,) = measure(original, [Subject("near", near)], EVALUATION)
    (level,) = level_evaluations("near", measured, seed=0)
    for windows, found in zip(EVALUATION, level.slices, strict=True):
        p, q = log_probabilities(original, windows.ids), log_probabilities(near, windows.ids)
        target = windows.ids[:, 1:, None]
        columns = found.windows
        for mine, log_p in ((columns.nll_original, p), (columns.nll_quantized, q)):
            assert mine == pytest.approx((-log_p.gather(2, target)).mean((1, 2)).tolist(), rel=1e-5)
        divergence = (p.exp() * (p - q)).sum(-1)
        assert columns.kl_mean == pytest.approx(divergence.mean(1).tolist(), rel=1e-3)
        assert found.kl_mean.value == pytest.approx(float(divergence.mean()), rel=1e-3)
        of_tokens = divergence.numpy().flatten()
        for level_of, mine in (
            (0.5, found.kl_median.value),
            (0.99, found.kl_p99.value),
            (0.999, found.kl_p999.value),
            (1.0, found.kl_max),
        ):
            assert mine == pytest.approx(np.quantile(of_tokens, level_of), rel=5e-3), level_of
        nll = -float(p.gather(2, target).mean())
        nll_near = -float(q.gather(2, target).mean())
        assert found.perplexity_original.value == pytest.approx(math.exp(nll), rel=1e-4)
        assert found.perplexity_quantized.value == pytest.approx(math.exp(nll_near), rel=1e-4)
        assert found.nll_increase.value == pytest.approx(nll_near - nll, rel=1e-3, abs=1e-5)
        same = (p.argmax(-1) == q.argmax(-1)).double()
        off = np.abs(np.array(columns.top1) - same.mean(1).numpy())
        assert (off <= (tied(p) | tied(q)).double().mean(1).numpy() + 1e-9).all()
        shared = [len(a & b) / 5 for a, b in zip(five(p), five(q), strict=True)]
        assert found.top5.value == pytest.approx(np.mean(shared), abs=0.002)
        assert 0.2 < found.top5.value < 1
        tokens = windows.ids.shape[1] - 1
        assert columns.tokens == (tokens,) * len(windows.ids)


def test_an_increase_is_paired_so_that_what_all_windows_share_does_not_widen_it(
    tmp_path: Path,
) -> None:
    original = open_checkpoint(str(write_tiny_gemma(tmp_path / "tiny", "gemma2")))
    (measured,) = measure(original, [Subject("near", Near(original))], EVALUATION)
    windows, scores = measured.levels[0].slices[0]
    scores.nll_quantized[:] = scores.nll_original + 0.25
    (level,) = level_evaluations("near", measured, seed=0)
    increase = level.slices[0].nll_increase
    assert (increase.low, increase.high) == (pytest.approx(0.25), pytest.approx(0.25))
    before = level.slices[0].perplexity_original
    assert before.high - before.low > 0.1
    assert level.slices[0].slice == windows.name
