from __future__ import annotations

import pytest

from gemquant.measure.gate.t_interval import Stratum, increase


def test_tokens_weigh_the_same_whatever_window_they_are_in() -> None:
    assert increase([Stratum([100, 300], [0.4, 0.0])]).mean == pytest.approx(0.1)


def test_bounds_of_equal_windows_are_those_of_a_paired_t_test() -> None:
    # scipy.stats.ttest_1samp([1, 2, 3, 6], 0).confidence_interval(0.95): (-0.437435, 6.437435)
    found = increase([Stratum([7] * 4, [1.0, 2.0, 3.0, 6.0])])
    low, high = found.low(0.025), found.high(0.025)
    assert low == pytest.approx(-0.43743488, abs=1e-8)
    assert high == pytest.approx(6.43743488, abs=1e-8)


def test_slices_together_have_welch_and_satterthwaites_degrees_of_freedom() -> None:
    # Two slices whose means' variances are 9 and 1, of five windows each: (9 + 1)² / (81/4 + 1/4).
    one, two = [Stratum([1] * 5, [scale * v for v in (-2, -1, 0, 1, 2)]) for scale in (3, 1)]
    assert increase([one, two]).freedom == 4


def test_a_window_alone_bounds_nothing() -> None:
    assert increase([Stratum([511], [0.1])]).high(0.025) is None


def test_windows_that_do_not_differ_are_identical() -> None:
    assert increase([Stratum([511, 511], [0.0, 0.0])]).identical


def test_so_many_windows_as_are_told_do_decide() -> None:
    noisy = increase([Stratum([1] * 4, [0.03, -0.02, 0.01, -0.016])])
    told = noisy.windows_to_decide(0.02, alpha=0.025, family_alpha=0.001)
    assert told is not None
    more = increase(
        [Stratum([1] * 4 * (told // 4 + 1), [0.03, -0.02, 0.01, -0.016] * (told // 4 + 1))]
    )
    assert more.high(0.025) < 0.02  # type: ignore[operator]


def test_no_number_of_windows_decides_an_increase_of_exactly_nothing_with_no_budget() -> None:
    level = increase([Stratum([1] * 4, [1.0, -1.0, 1.0, -1.0])])
    assert level.windows_to_decide(0.0, alpha=0.025, family_alpha=0.001) is None
