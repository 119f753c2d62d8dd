"""The fused softmax against float64, and every processor level against every other."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from gemquant.measure.quality import divergence
from gemquant.measure.quality.divergence import Logits, TokenScores, compare_predictions
from gemquant.numerics import native
from gemquant.numerics.native import build
from tests.helpers.native_levels import LEVELS, at_level

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.status().reason))

TOKENS, VOCABULARY = 37, 2999  # neither a multiple of a register nor of a run


def logits(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = scale * torch.randn(TOKENS, VOCABULARY, generator=generator)
    return first, first + 0.2 * torch.randn(TOKENS, VOCABULARY, generator=generator)


def scores(first: Tensor, second: Tensor) -> TokenScores:
    targets = torch.arange(TOKENS) * 81
    (found,) = compare_predictions(
        Logits(first), [Logits(second)], targets, vocabulary=first.shape[1]
    )
    return found


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_near_float64(
    monkeypatch: pytest.MonkeyPatch, level: str, scale: float
) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", 1000)
    first, second = logits(scale)
    with at_level(level):
        found = scores(first, second)
    p, q = (torch.log_softmax(each.double(), -1) for each in (first, second))
    rows, targets = torch.arange(TOKENS), torch.arange(TOKENS) * 81
    torch.testing.assert_close(
        found.divergence.double(), (p.exp() * (p - q)).sum(-1), rtol=2e-6, atol=1e-6
    )
    for nll, log_p in ((found.nll_original, p), (found.nll_quantized, q)):
        torch.testing.assert_close(nll.double(), -log_p[rows, targets], rtol=1e-6, atol=1e-6)
    assert torch.equal(found.agreement.bool(), p.argmax(-1) == q.argmax(-1))
    if scale:
        five = [each.topk(5).indices for each in (p, q)]
        shared = (five[0][:, :, None] == five[1][:, None, :]).any(2).sum(1)
        assert torch.equal(found.shared.long(), shared)


@pytest.mark.parametrize("level", list(build.levels())[1:])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_level_and_number_of_threads_computes_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, level: str, threads: int
) -> None:
    monkeypatch.setattr(divergence, "TOKENS_AT_ONCE", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pair = logits(4.0)
    with at_level(next(iter(build.levels()))):
        expected = scores(*pair)
    with at_level(level):
        found = scores(*pair)
    assert all(map(torch.equal, astuple(found), astuple(expected)))


@pytest.mark.parametrize("level", LEVELS)
def test_infinities_and_what_is_no_number_are_not_hidden(level: str) -> None:
    first, second = logits(4.0)
    first[3, 100], second[4, 2998], second[5, 2000] = torch.nan, torch.nan, torch.inf
    second[6, 0] = -torch.inf  # a token that the other model excludes
    with at_level(level):
        found = scores(first, second)
    finite = torch.isfinite(found.divergence)
    assert torch.nonzero(~finite).flatten().tolist() == [3, 4, 5, 6]
    assert torch.isfinite(found.nll_quantized[6])
