from __future__ import annotations

import pytest

from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.measure.gate.artifact_checks import bench_checks, bytes_check, size_check
from gemquant.measure.gate.baseline import BaselineEntry, BenchFigures
from gemquant.measure.gate.budget import Budgets, Limits
from gemquant.measure.gate.verdict import Check
from tests.helpers.tiny_gate import baseline_of, measured, with_artifact

MADE_WITH = {"torch": "2.13.0", "gemquant": "0.1.0"}


def made(digest: str = "1", **changes: object) -> EvaluationDocument:
    given = {"libraries": MADE_WITH, **changes}
    return with_artifact(measured(), digest="sha256:" + digest * 64, **given)


def bytes_of(now: EvaluationDocument, budgets: Budgets | None = None) -> Check:
    (entry,) = baseline_of(made()).artifacts
    return bytes_check(now.artifacts[0], now.machine, entry, budgets or Budgets())


def test_equal_bytes_pass() -> None:
    assert bytes_of(made()).outcome == "pass"


def test_changed_bytes_without_a_recorded_reason_fail() -> None:
    assert bytes_of(made("2")).outcome == "regression"


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (made("2").model_copy(update={"machine": "other"}), "another machine"),
        (made("2", libraries={**MADE_WITH, "torch": "2.14.0"}), "torch 2.13.0 → 2.14.0"),
        (made("2", libraries={}), "not known"),
    ],
)
def test_changed_bytes_are_only_reported_where_something_else_changed(
    now: EvaluationDocument, why: str
) -> None:
    found = bytes_of(now)
    assert found.outcome == "reported"
    assert why in str(found.note)


def test_budgets_can_leave_bytes_alone() -> None:
    budgets = Budgets(budget=Limits(bytes_changed="report"))
    assert bytes_of(made("2"), budgets).outcome == "reported"


@pytest.mark.parametrize(("size", "outcome"), [(1_010_000, "pass"), (1_010_001, "regression")])
def test_size_may_grow_by_its_budget_and_no_more(size: int, outcome: str) -> None:
    (entry,) = baseline_of(measured()).artifacts
    (now,) = with_artifact(measured(), size_bytes=size).artifacts
    assert size_check(now, entry, Budgets()).outcome == outcome


# ---------------------------------------------------------------- benchmarks


def ran(*speeds: float, memory: int = 1000, machine: str = "m", threads: int = 2) -> BenchFigures:
    return BenchFigures(
        runtime="llama.cpp",
        mode="default",
        settings={"threads": threads},
        machine=machine,
        decode_tokens_per_second=speeds,
        peak_anonymous_bytes=memory,
        peak_device_bytes=None,
    )


def outcomes(now: BenchFigures) -> dict[str, str]:
    entry = BaselineEntry(
        evaluation=measured().artifacts[0], settings={}, machine="m", bench=(ran(99, 100, 101),)
    )
    return {each.metric: each.outcome for each in bench_checks("a", [now], entry, Budgets())}


def test_the_same_speed_and_memory_pass() -> None:
    assert outcomes(ran(99, 100, 101)) == {"peak_memory": "pass", "decode_speed": "pass"}


def test_a_slower_artifact_fails() -> None:
    assert outcomes(ran(79, 80, 81))["decode_speed"] == "regression"


def test_a_slower_median_whose_runs_overlap_is_inconclusive() -> None:
    assert outcomes(ran(79, 80, 100))["decode_speed"] == "inconclusive"


def test_speed_of_another_machine_is_reported_and_not_gated() -> None:
    assert outcomes(ran(10, 11, 12, machine="other"))["decode_speed"] == "reported"


def test_memory_beyond_its_budget_fails_on_any_machine() -> None:
    assert outcomes(ran(100, memory=1101, machine="other"))["peak_memory"] == "regression"


def test_other_settings_are_reported_and_not_gated() -> None:
    found = outcomes(ran(10, memory=9999, threads=8))
    assert found == {"peak_memory": "reported", "decode_speed": "reported"}
