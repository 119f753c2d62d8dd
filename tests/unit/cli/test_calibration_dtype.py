from __future__ import annotations

import pytest

from gemquant.convert import prepare
from gemquant.core.recipe import Recipe


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "has_bfloat16_products", lambda: native)
    assert prepare.calibration_dtype(Recipe("m", "awq")) == chosen


def test_a_type_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "has_bfloat16_products", lambda: True)
    assert prepare.calibration_dtype(Recipe("m", "awq", calib_dtype="float32")) == "float32"


def test_without_native_products_calibration_follows_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare, "has_bfloat16_products", lambda: False)
    assert prepare.calibration_dtype(Recipe("m", "awq", dtype="bfloat16")) == "bfloat16"
