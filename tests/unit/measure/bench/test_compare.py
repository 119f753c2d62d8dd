"""Before and after, on one machine only."""

from __future__ import annotations

import pytest

from gemquant.errors import UnsupportedError, UsageError
from gemquant.measure.bench.compare import compare
from tests.unit.measure.bench.conftest import Made, figures, row


def test_another_machine_is_refused_with_what_differs(made: Made) -> None:
    before = made(row())
    after = made(row(), processor="Other CPU", memory_gib=32, fingerprint="c" * 64)
    with pytest.raises(UnsupportedError) as refused:
        compare(before, after)
    assert "processor Some CPU and Other CPU; memory_gib 16 and 32" in refused.value.message
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [("prompt_tokens", 64), ("new_tokens", 9), ("threads", 1), ("device", "mps"), ("dtype", "x")],
)
def test_another_setting_is_refused_by_name(made: Made, setting: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"different things: {setting} .* and {value}"):
        compare(made(row()), made(row(), **{setting: value}))


def test_more_repetitions_are_no_other_setting(made: Made) -> None:
    assert compare(made(row()), made(row(), repetitions=7)).rows


def test_ratios_are_after_over_before(made: Made) -> None:
    faster = row(figures=figures([20.0, 22.0, 24.0]), size_bytes=500)
    (change,) = compare(made(row()), made(faster)).rows
    decode = change.changes["decode_tokens_per_second"]
    assert (decode.before, decode.after, decode.ratio) == (11.0, 22.0, 2.0)
    assert decode.overlapping is False
    size = change.changes["size_bytes"]
    assert (size.ratio, size.overlapping) == (0.5, None)
    assert "peak_device_bytes" not in change.changes


def test_ranges_that_overlap_are_said_to(made: Made) -> None:
    little = row(figures=figures([11.5, 13.0, 12.5]))
    (change,) = compare(made(row()), made(little)).rows
    assert change.changes["decode_tokens_per_second"].overlapping is True


def test_an_artifact_is_the_same_in_another_folder(made: Made) -> None:
    moved = row(artifact="/elsewhere/model.gguf")
    assert len(compare(made(row()), made(moved)).rows) == 1


def test_rows_that_only_one_has_are_named(made: Made) -> None:
    other = row(artifact="other.gguf")
    made_ = compare(made(row(), other), made(row()))
    assert made_.unmatched == ("other.gguf llama.cpp default",)
    with pytest.raises(UsageError, match="no measured row in common"):
        compare(made(other), made(row()))


def test_a_row_that_was_not_run_is_no_row(made: Made) -> None:
    nothing = row(figures=None, not_run="not installed")
    with pytest.raises(UsageError, match="no measured row in common"):
        compare(made(nothing), made(row()))


def test_versions_and_conditions_that_changed_are_told(made: Made) -> None:
    before = made(row(), libraries={"torch": "2.12", "gemquant": "1"}, governor="powersave")
    after = made(row(), libraries={"torch": "2.13", "gemquant": "1"})
    assert compare(before, after).differs == ("torch 2.12 → 2.13", "governor powersave → unknown")
