from __future__ import annotations

import time
from pathlib import Path

import pytest

from gemquant.errors import NotComparableError, UsageError
from gemquant.measure.gate.baseline import Baseline
from gemquant.measure.gate.update import updated, write_baseline
from tests.helpers.tiny_gate import baseline_of, measured


def test_an_update_keeps_what_was_not_measured_again_and_records_its_reason() -> None:
    before = baseline_of(measured(), measured(name="gemma-nf4"))
    after = updated([measured()], before, reason="new order", commit="abc")
    assert [each.name for each in after.artifacts] == ["gemma-awq", "gemma-nf4"]
    assert [(each.reason, each.commit) for each in after.history] == [
        ("first", None),
        ("new order", "abc"),
    ]


def test_the_history_holds_figures_over_all_slices() -> None:
    (entry,) = baseline_of(measured({"english": [0.1, 0.3], "code": [0.2, 0.2]})).history
    assert entry.artifacts[0].kl_mean == pytest.approx(0.2)
    assert entry.artifacts[0].nll_increase == pytest.approx(0.1)
    assert entry.artifacts[0].top1 == pytest.approx(0.8)


def test_another_original_is_never_put_into_a_baseline() -> None:
    now = measured()
    other = now.original.model_copy(update={"digest": "sha256:" + "9" * 64})
    with pytest.raises(NotComparableError, match="another original"):
        updated(
            [now.model_copy(update={"original": other})], baseline_of(now), reason="x", commit=None
        )


def test_another_suite_replaces_all_artifacts_or_none() -> None:
    now = measured()
    newer = now.model_copy(update={"suite": now.suite.model_copy(update={"version": 2})})
    both = baseline_of(now, measured(name="gemma-nf4"))
    with pytest.raises(NotComparableError, match="still holds 'gemma-nf4'"):
        updated([newer], both, reason="x", commit=None)
    assert updated([newer], baseline_of(now), reason="x", commit=None).suite.version == 2


def test_a_baseline_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_baseline(tmp_path / "base.json", baseline_of(measured()))
    assert Baseline.read(tmp_path / "base.json") == baseline_of(measured())
    assert [each.name for each in tmp_path.iterdir()] == ["base.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "not JSON"])
def test_an_empty_or_broken_baseline_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UsageError, match=r"base\.json"):
        Baseline.read(tmp_path / "base.json")


def test_nan_in_a_baseline_is_refused(tmp_path: Path) -> None:
    text = baseline_of(measured()).to_json().decode().replace('"kl_max": 3.0', '"kl_max": NaN')
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UsageError, match="finite"):
        Baseline.read(tmp_path / "base.json")


def test_a_history_of_ten_thousand_entries_stays_quick(tmp_path: Path) -> None:
    one = baseline_of(measured())
    long = one.model_copy(update={"history": one.history * 10_000})
    began = time.perf_counter()
    write_baseline(tmp_path / "base.json", long)
    again = updated([measured()], Baseline.read(tmp_path / "base.json"), reason="x", commit=None)
    # Far above what it takes, far below what anything quadratic would.
    assert time.perf_counter() - began < 10
    assert len(again.history) == 10_001
