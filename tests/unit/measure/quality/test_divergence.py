"""Chunked comparison against a float64 softmax over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gemquant.measure.quality import divergence
from gemquant.measure.quality.divergence import (
    Head,
    Logits,
    Table,
    TokenScores,
    compare_predictions,
)
from gemquant.numerics.native import build
from tests.helpers.native_levels import at_level

TOKENS, HIDDEN, VOCABULARY = 50, 12, 97


@pytest.fixture(autouse=True, params=[next(reversed(build.levels())), "no kernels"])
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    with at_level(request.param):
        yield


def table_of(weight: Tensor) -> Table:
    return lambda start, stop: weight[start:stop]


def models(seed: int = 0, *, count: int = 2, spread: float = 3.0) -> list[tuple[Tensor, Tensor]]:
    """Hidden states and heads: an original, and others near it."""
    generator = torch.Generator().manual_seed(seed)
    hidden = spread * torch.randn(TOKENS, HIDDEN, generator=generator)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    others = [
        (
            hidden + 0.3 * torch.randn(TOKENS, HIDDEN, generator=generator),
            head + 0.1 * torch.randn(VOCABULARY, HIDDEN, generator=generator),
        )
        for _ in range(count - 1)
    ]
    return [(hidden, head), *others]


TARGETS = (torch.arange(TOKENS) * 2) % VOCABULARY  # one in every run of the vocabulary


def compared(
    made: list[tuple[Tensor, Tensor]], *, softcap: float | None = None
) -> list[TokenScores]:
    original, *others = [Head(hidden, table_of(head), softcap) for hidden, head in made]
    return compare_predictions(original, others, TARGETS, vocabulary=VOCABULARY)


def expected(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], softcap: float | None
) -> TokenScores:
    def log_probabilities(model: tuple[Tensor, Tensor]) -> Tensor:
        logits = model[0].double() @ model[1].double().T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return torch.log_softmax(logits, -1)

    p, q = log_probabilities(first), log_probabilities(second)
    rows = torch.arange(TOKENS)
    return TokenScores(
        nll_original=-p[rows, TARGETS],
        nll_quantized=-q[rows, TARGETS],
        divergence=(p.exp() * (p - q)).sum(-1),
        agreement=(p.argmax(-1) == q.argmax(-1)).double(),
        shared=shared_by(p, q),
    )


def shared_by(first: Tensor, second: Tensor) -> Tensor:
    """How many of the five largest columns of each row two matrices have in common."""
    best = [set(row.argsort(descending=True)[:5].tolist()) for row in first]
    theirs = [set(row.argsort(descending=True)[:5].tolist()) for row in second]
    return torch.tensor([len(a & b) for a, b in zip(best, theirs, strict=True)]).double()


def assert_same(found: TokenScores, wanted: TokenScores) -> None:
    for name in ("nll_original", "nll_quantized", "divergence"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(wanted, name), rtol=1e-5, atol=2e-6
        )
    assert torch.equal(found.agreement.double(), wanted.agreement)
    assert torch.equal(found.shared.double(), wanted.shared)
    assert 0 < wanted.agreement.mean() < 1, "the example decides nothing about agreement"
    assert 0 < wanted.shared.mean() < 5, "the example decides nothing about the five likeliest"


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["plain", "softcap"])
@pytest.mark.parametrize(
    ("vocabulary_at_once", "tokens_at_once"), [(8192, 512), (10, 7), (1, 50), (97, 1)]
)
def test_scores_are_those_of_a_whole_softmax(
    monkeypatch: pytest.MonkeyPatch,
    vocabulary_at_once: int,
    tokens_at_once: int,
    softcap: float | None,
) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", vocabulary_at_once)
    monkeypatch.setattr(divergence, "TOKENS_AT_ONCE", tokens_at_once)
    made = models()
    (found,) = compared(made, softcap=softcap)
    assert_same(found, expected(*made, softcap))


def test_several_candidates_are_scored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", 20)
    made = models(count=4)
    for found, other in zip(compared(made), made[1:], strict=True):
        assert_same(found, expected(made[0], other, None))


def test_large_logits_do_not_overflow() -> None:
    made = models(spread=60.0)
    (found,) = compared(made)
    wanted = expected(*made, None)
    torch.testing.assert_close(found.divergence.double(), wanted.divergence, rtol=1e-4, atol=1e-3)


def test_a_model_diverges_from_itself_by_nothing() -> None:
    made = models(count=1)
    (found,) = compared([made[0], made[0]])
    assert (found.divergence == 0).all()
    assert (found.agreement == 1).all()
    assert (found.shared == 5).all()
    assert torch.equal(found.nll_original, found.nll_quantized)


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    hidden, head = models(count=1)[0]
    other = (hidden + 1e-3 * torch.sin(torch.arange(HIDDEN) * 1.0), head)
    (found,) = compared([(hidden, head), other])
    wanted = expected((hidden, head), other, None)
    assert 1e-8 < wanted.divergence.mean() < 1e-5
    torch.testing.assert_close(
        found.divergence.mean().double(), wanted.divergence.mean(), rtol=0.05, atol=1e-8
    )


@pytest.mark.parametrize("at_once", [2, 8192])
def test_of_tied_tokens_the_first_counts_as_top_in_both(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", at_once)
    hidden = torch.ones(TOKENS, 1)
    first, second = torch.zeros(VOCABULARY, 1), torch.zeros(VOCABULARY, 1)
    first[[3, 40, 90]] = 2.0
    second[[40, 90]] = 2.0
    (apart,) = compared([(hidden, first), (hidden, second)])
    assert (apart.agreement == 0).all()
    second[3] = 2.0
    (together,) = compared([(hidden, first), (hidden, second)])
    assert (together.agreement == 1).all()


def test_predictions_that_are_no_numbers_never_agree() -> None:
    hidden, head = models(count=1)[0]
    nothing = (hidden * float("nan"), head)
    (found,) = compared([(hidden, head), nothing])
    assert (found.agreement == 0).all()
    assert found.divergence.isnan().all()
    (both,) = compared([nothing, nothing])
    assert (both.agreement == 0).all()


def test_every_row_of_a_table_is_read_once_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", 30)
    monkeypatch.setattr(divergence, "TOKENS_AT_ONCE", 7)
    hidden, head = models(count=1)[0]
    read: list[tuple[int, int]] = []

    def table(start: int, stop: int) -> Tensor:
        read.append((start, stop))
        return head[start:stop]

    compare_predictions(Head(hidden, table), [], TARGETS, vocabulary=VOCABULARY)
    assert read == [(0, 30), (30, 60), (60, 90), (90, 97)]


def test_given_logits_score_as_the_head_that_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", 20)
    (hidden, head), (other, table) = made = models()
    given = Logits(5.0 * torch.tanh(other @ table.T / 5.0))
    original = Head(hidden, table_of(head), 5.0)
    (found,) = compare_predictions(original, [given], TARGETS, vocabulary=VOCABULARY)
    assert_same(found, expected(*made, 5.0))


def test_joined_scores_are_those_of_the_parts() -> None:
    (scores,) = compared(models())
    joined = TokenScores.joined([scores.between(0, 9), scores.between(9, TOKENS)])
    for name in ("nll_original", "nll_quantized", "divergence", "agreement", "shared"):
        assert torch.equal(getattr(joined, name), getattr(scores, name))


def test_scores_between_two_tokens_are_cut_from_all_five() -> None:
    (scores,) = compared(models())
    part = scores.between(3, 9)
    assert torch.equal(part.nll_original, scores.nll_original[3:9])
    assert torch.equal(part.nll_quantized, scores.nll_quantized[3:9])
    assert torch.equal(part.divergence, scores.divergence[3:9])
    assert torch.equal(part.agreement, scores.agreement[3:9])
    assert torch.equal(part.shared, scores.shared[3:9])


@pytest.mark.parametrize("width", [320, 640, 1000])
def test_the_five_likeliest_of_a_wide_run_are_those_of_sorting_all_of_it(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(divergence, "VOCABULARY_AT_ONCE", width)
    generator = torch.Generator().manual_seed(width)
    first = torch.randn(TOKENS, 1000, generator=generator)
    second = first + 0.3 * torch.randn(TOKENS, 1000, generator=generator)
    (found,) = compare_predictions(
        Logits(first), [Logits(second)], TARGETS, vocabulary=first.shape[1]
    )
    wanted = shared_by(first, second)
    assert torch.equal(found.shared.double(), wanted)
    assert 1 < wanted.mean() < 4.9
