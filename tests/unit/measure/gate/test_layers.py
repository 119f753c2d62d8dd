from __future__ import annotations

from gemquant.measure.gate.reasons import worst_layer
from tests.helpers.tiny_gate import level_with_errors

BEFORE = level_with_errors([0.02, 0.05, 0.04, 0.20, 0.21])


def test_the_layer_that_adds_an_error_is_named() -> None:
    # Layer 2 adds 0.04; layer 3 makes everything five times as large, as it did before.
    now = level_with_errors([0.02, 0.05, 0.0566, 0.283, 0.29])
    found = worst_layer("reference", "english", BEFORE, now)
    assert found is not None
    assert found.layer == 2


def test_the_first_layer_can_be_named() -> None:
    now = level_with_errors([0.04, 0.06, 0.05, 0.21, 0.22])
    found = worst_layer("reference", "english", BEFORE, now)
    assert found is not None
    assert (found.layer, found.ratio_before) == (0, 1.0)


def test_no_layer_is_named_where_none_is_worse() -> None:
    assert worst_layer("reference", "english", BEFORE, BEFORE) is None


def test_no_layer_is_named_for_models_of_another_depth() -> None:
    now = level_with_errors([0.9, 0.9])
    assert worst_layer("reference", "english", BEFORE, now) is None


def test_rounding_of_the_arithmetic_names_no_layer() -> None:
    nothing = level_with_errors([0.0, 0.0, 0.0])
    now = level_with_errors([1e-6, 3e-6, 3e-6])
    assert worst_layer("reference", "english", nothing, now) is None
