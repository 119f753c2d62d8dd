"""What the card of a collection says of quality, and which file it advises."""

from __future__ import annotations

import math

import pytest
import torch

from gemquant.numerics.bootstrap import WindowBootstrap, stratified_mean
from gemquant.publish.figures import BANDS, Member, by_family, recommended


class Measured(Member):
    """A member of given size and divergence."""

    def __init__(self, name: str, size: int, kl: float) -> None:
        object.__setattr__(self, "given", (name, size, kl))

    short = property(lambda self: self.given[0])  # type: ignore[assignment]
    label = short
    size = property(lambda self: self.given[1])  # type: ignore[assignment]
    kl = property(lambda self: self.given[2])  # type: ignore[assignment]
    family = "llama.cpp"  # type: ignore[assignment]
    figures = True  # type: ignore[assignment]


LARGE, USUAL, SMALL = Measured("large", 9, 0.004), Measured("usual", 5, 0.04), Measured("s", 3, 0.3)


def test_the_smallest_that_is_close_is_advised() -> None:
    assert recommended([LARGE, USUAL, SMALL]) is USUAL


def test_where_none_is_close_the_closest_is_advised() -> None:
    far = Measured("far", 4, 0.2)
    assert recommended([SMALL, far]) is far


def test_what_another_beats_in_both_is_said() -> None:
    beaten = Measured("beaten", 6, 0.05)
    assert beaten.good_for([LARGE, USUAL, beaten]) == ("everyday use; usual is smaller and closer")
    assert USUAL.good_for([LARGE, USUAL, beaten]) == "everyday use"


def test_members_are_listed_from_the_largest() -> None:
    assert by_family([SMALL, LARGE, USUAL]) == {"llama.cpp": [LARGE, USUAL, SMALL]}


def test_every_divergence_has_words() -> None:
    bounds = [bound for bound, *_ in BANDS]
    assert bounds == sorted(bounds)
    assert bounds[-1] == math.inf


def test_of_one_text_the_interval_is_that_of_its_windows() -> None:
    values = torch.rand(6, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = WindowBootstrap.seeded(6, 0).mean(values)
    found = stratified_mean([values.mean(1).tolist()], [[31] * 6])
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)


def test_a_difference_between_texts_widens_no_interval() -> None:
    one, other = [1.0, 1.1, 0.9, 1.0], [100.0, 100.1, 99.9, 100.0]
    found = stratified_mean([one, other], [[10] * 4] * 2)
    assert found.value == pytest.approx(50.5)
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low < 0.5


def test_intervals_over_several_texts_hold_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(7)
    draws = torch.randn(300, 3, 4, generator=generator, dtype=torch.float64)
    inside = 0
    for texts in draws.tolist():
        found = stratified_mean(texts, [[5] * 4] * 3)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0 <= found.high
    assert 0.92 <= inside / 300 <= 0.99


def test_one_window_of_a_text_leaves_no_interval() -> None:
    assert stratified_mean([[1.0], [2.0, 3.0]], [[4], [4, 4]]).low is None
