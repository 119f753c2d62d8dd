"""All figures of a slice against plain transformers in float64, on every generation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gemquant.core.artifact.evaluation import Interval
from gemquant.errors import ArtifactError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.divergence import TokenScores
from gemquant.measure.quality.figures import mean_over_windows, slice_evaluation
from gemquant.measure.quality.measure import compare
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_job import EVALUATION
from tests.helpers.tiny_windows import tiny_windows

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
    (level,) = compare(original, near, EVALUATION)
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
            (0.5, found.kl_median and found.kl_median.value),
            (0.99, found.kl_p99 and found.kl_p99.value),
            (0.999, found.kl_p999.value),
            (1.0, found.kl_max),
        ):
            assert mine == pytest.approx(np.quantile(of_tokens, level_of), rel=5e-3), level_of
        nll = -float(p.gather(2, target).mean())
        nll_near = -float(q.gather(2, target).mean())
        assert found.perplexity_original.value == pytest.approx(math.exp(nll), rel=1e-4)
        assert found.perplexity_quantized.value == pytest.approx(math.exp(nll_near), rel=1e-4)
        assert found.nll_increase is not None
        assert found.nll_increase.value == pytest.approx(nll_near - nll, rel=1e-3, abs=1e-5)
        same = (p.argmax(-1) == q.argmax(-1)).double()
        off = np.abs(np.array(columns.top1) - same.mean(1).numpy())
        assert (off <= (tied(p) | tied(q)).double().mean(1).numpy() + 1e-9).all()
        shared = [len(a & b) / 5 for a, b in zip(five(p), five(q), strict=True)]
        assert found.top5 is not None
        assert found.top5.value == pytest.approx(np.mean(shared), abs=0.002)
        assert 0.2 < found.top5.value < 1
        tokens = windows.ids.shape[1] - 1
        assert columns.tokens == (tokens,) * len(windows.ids)


def scores(windows: int = 6, tokens: int = 500) -> TokenScores:
    generator = torch.Generator().manual_seed(windows)
    shape = (windows * tokens,)
    level = torch.linspace(0.5, 2, windows).repeat_interleave(tokens)
    return TokenScores(
        nll_original=level * torch.rand(shape, generator=generator),
        nll_quantized=level * torch.rand(shape, generator=generator) + 0.1,
        divergence=torch.rand(shape, generator=generator).pow(4),
        agreement=(torch.rand(shape, generator=generator) < 0.9).float(),
        shared=torch.full(shape, 4.0),
    )


def test_a_slice_can_be_checked_by_hand() -> None:
    two = torch.tensor
    result = slice_evaluation(
        tiny_windows(2, 3),
        TokenScores(
            nll_original=two([0.0, 2.0, 1.0, 3.0]),
            nll_quantized=two([1.0, 1.0, 3.0, 3.0]),
            divergence=two([0.0, 0.5, 0.5, 1.0]),
            agreement=two([1.0, 1.0, 0.0, 1.0]),
            shared=two([5.0, 5.0, 4.0, 5.0]),
        ),
        seed=0,
    )
    assert (result.window_count, result.token_count) == (2, 4)
    assert result.windows.nll_original == (1.0, 2.0)
    assert result.windows.kl_mean == (0.25, 0.75)
    assert result.perplexity_original.value == pytest.approx(math.exp(1.5))
    assert result.perplexity_quantized.value == pytest.approx(math.exp(2.0))
    assert result.kl_mean == Interval(value=0.5, low=0.25, high=0.75)
    assert result.top1 == Interval(value=0.75, low=0.5, high=1.0)
    assert result.top5 == Interval(value=0.95, low=0.9, high=1.0)


def test_values_and_the_tail_are_those_of_numpy() -> None:
    made = scores()
    result = slice_evaluation(tiny_windows(6, 501), made, seed=0)
    for figure, values in ((result.kl_mean, made.divergence), (result.top1, made.agreement)):
        assert figure.value == pytest.approx(values.double().numpy().mean(), rel=1e-12)
        assert figure.low < figure.value < figure.high
    tail = np.quantile(made.divergence.double().numpy(), 0.999)
    assert result.kl_p999.value == pytest.approx(tail, rel=1e-12)
    assert result.kl_p999.low < tail < result.kl_p999.high


def test_one_window_has_no_interval() -> None:
    result = slice_evaluation(tiny_windows(1, 501), scores(1), seed=0)
    for name in ("perplexity_original", "perplexity_quantized", "kl_mean", "kl_p999", "top1"):
        figure = getattr(result, name)
        assert (figure.low, figure.high) == (None, None)


def test_a_mean_over_windows_is_that_of_its_values() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert mean_over_windows(values, 2, seed=0) == Interval(value=4.0, low=2.0, high=6.0)


def test_sampled_positions_give_unbiased_means_with_intervals_over_windows() -> None:
    """Of positions that are alike where they are near, as those of a text are."""
    windows, draws = tiny_windows(6, 501), 400
    steps = torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    values = (0.05 * steps.cumsum(1)).exp()
    whole = TokenScores(*(values.flatten() for _ in range(5)))
    everything = slice_evaluation(windows, whole, seed=0)
    means, log_perplexities = [], []
    for draw in range(draws):
        sampled = windows.sampled(16, draw=draw)
        some = values.gather(1, sampled.positions).flatten()
        found = slice_evaluation(sampled, TokenScores(*(some for _ in range(5))), seed=0)
        assert (found.token_count, found.window_count) == (96, 6)
        means.append(found.kl_mean.value)
        log_perplexities.append(math.log(found.perplexity_quantized.value))
    for each in (means, log_perplexities):
        error = np.std(each) / draws**0.5
        assert 0 < error < 0.02 * everything.kl_mean.value
        assert abs(np.mean(each) - everything.kl_mean.value) < 4 * error


def test_an_artifact_that_predicts_nothing_is_an_error_and_no_infinite_perplexity() -> None:
    made = scores()
    made.nll_quantized[:] = 1e6
    with pytest.raises(ArtifactError, match=r"artifact-0, slice .*: 1,000,000 nats per token"):
        slice_evaluation(tiny_windows(6, 501), made, seed=0, artifact="artifact-0")


def test_an_increase_is_paired_so_that_what_all_windows_share_does_not_widen_it() -> None:
    made = scores()
    made.nll_quantized[:] = made.nll_original + 0.25
    result = slice_evaluation(tiny_windows(6, 501), made, seed=0)
    increase, before = result.nll_increase, result.perplexity_original
    assert increase is not None
    assert (increase.low, increase.high) == (pytest.approx(0.25), pytest.approx(0.25))
    assert before.high - before.low > 0.1
