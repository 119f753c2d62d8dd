from __future__ import annotations

import pytest

from gemquant.core.artifact.evaluation import EvaluationDocument, LayerErrors
from gemquant.measure.gate.budget import Budgets, Limits
from gemquant.measure.gate.gate import judge
from gemquant.measure.gate.verdict import Check, Verdict
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_gate import (
    KL_ALONE,
    baseline_of,
    divergences,
    measured,
    with_artifact,
    with_level,
)


def judged(now: EvaluationDocument, budgets: Budgets = KL_ALONE) -> Verdict:
    return judge([now], baseline_of(measured()), budgets, file="ci/base.json")


def worse(english: float, code: float = 0.0, *, windows: int = 8) -> EvaluationDocument:
    return measured(
        {
            "english": divergences(windows, rise=english),
            "code": divergences(windows, seed=7, rise=code),
        }
    )


def check(verdict: Verdict, name: str | None) -> Check:
    (found,) = [
        each
        for each in verdict.artifacts[0].checks
        if each.metric == "kl_mean" and each.slice == name
    ]
    return found


def test_an_equal_artifact_passes_with_a_budget_of_nothing() -> None:
    nothing = Budgets(budget=Limits(nll_increase=0, kl_mean=0, top1=0, size=0))
    verdict = judged(measured(), nothing)
    assert (verdict.outcome, verdict.exit_code) == ("pass", 0)


def test_a_significant_loss_within_budget_passes() -> None:
    verdict = judged(worse(0.01))
    low = check(verdict, "english").low
    assert low is not None
    assert low > 0
    assert verdict.outcome == "pass"


def test_a_loss_beyond_the_budget_is_a_regression_in_its_slice_alone() -> None:
    verdict = judged(worse(0.05))
    assert verdict.exit_code == 10
    assert check(verdict, "english").outcome == "regression"
    assert check(verdict, "code").outcome == "pass"


def test_a_gain_passes() -> None:
    verdict = judge([measured()], baseline_of(worse(0.05, 0.05)), KL_ALONE, file="b")
    assert verdict.outcome == "pass"


def test_nothing_is_rounded_before_it_is_compared() -> None:
    kl = {"english": [0.1] * 8}
    baseline = baseline_of(measured(kl))
    within, beyond = (
        judge([measured({"english": [value] * 8})], baseline, KL_ALONE, file="b").outcome
        for value in (0.1199999, 0.1200001)
    )
    assert (within, beyond) == ("pass", "regression")


def noisy() -> EvaluationDocument:
    """Higher by about half the budget, and the windows disagree by ten times as much."""
    old = divergences()
    new = [kl + 0.01 + (0.04 if number % 2 else -0.04) for number, kl in enumerate(old)]
    return measured({"english": new, "code": divergences(seed=7)})


def test_what_cannot_be_decided_is_not_a_pass_and_says_how_many_windows_would() -> None:
    verdict = judged(noisy())
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", 11)
    needed = check(verdict, "english").windows_needed
    assert needed is not None
    assert f"about {needed} would decide" in verdict.artifacts[0].reasons[0]


def test_budgets_may_let_an_inconclusive_verdict_pass_with_a_warning() -> None:
    verdict = judged(noisy(), KL_ALONE.model_copy(update={"inconclusive": "warn"}))
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", 0)


def test_a_single_window_that_differs_is_inconclusive() -> None:
    baseline = baseline_of(measured({"english": [0.1]}))
    verdict = judge([measured({"english": [0.9]})], baseline, KL_ALONE, file="b")
    assert verdict.exit_code == 11
    assert "a single window bounds nothing" in verdict.artifacts[0].reasons[0]


def test_a_ceiling_holds_for_an_unchanged_artifact_too() -> None:
    limits = KL_ALONE.budget.model_copy(update={"kl_mean_ceiling": 0.05})
    verdict = judged(measured(), KL_ALONE.model_copy(update={"budget": limits}))
    assert verdict.outcome == "regression"


def test_the_message_names_slice_metric_and_layer() -> None:
    (level,) = worse(0.05).artifacts[0].levels
    errors = LayerErrors(
        slice="english", relative=(0.01, 0.02, 0.05, 0.06), cosine=(1.0, 1.0, 1.0, 1.0)
    )
    verdict = judged(with_level(worse(0.05), layers_accumulated=(errors,), slices=level.slices))
    assert (
        verdict.artifacts[0]
        .reasons[0]
        .startswith("level reference, slice 'english': mean KL divergence rose by 0.0")
    )
    assert (
        "rises at layer 2: relative 0.05 after it, 0.03 in the" in verdict.artifacts[0].reasons[0]
    )


def test_more_checks_ask_more_of_each_before_it_is_called_a_regression() -> None:
    alone = judge(
        [measured({"english": divergences(rise=0.05)})],
        baseline_of(measured({"english": divergences()})),
        KL_ALONE,
        file="b",
    )
    lows = [check(verdict, "english").low for verdict in (judged(worse(0.05)), alone)]
    assert lows[0] < lows[1]  # type: ignore[operator]


# ---------------------------------------------------------------- not comparable


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("original", {"digest": "sha256:" + "9" * 64}, "another original"),
        ("suite", {"version": 2}, "suite 'default' version 2, and the baseline on 'default' ver"),
        ("suite", {"name": "long"}, "suite 'long' version 1"),
        ("suite", {"token_stream": "sha256:" + "9" * 64}, "other tokens of suite"),
    ],
)
def test_another_measurement_is_an_error_and_not_a_pass(
    part: str, changes: dict[str, object], reason: str
) -> None:
    now = measured()
    verdict = judged(now.model_copy(update={part: getattr(now, part).model_copy(update=changes)}))
    assert (verdict.outcome, verdict.exit_code) == ("not-comparable", 11)
    assert reason in verdict.artifacts[0].reasons[0]


def test_another_compute_type_is_not_comparable() -> None:
    now = measured().model_copy(update={"settings": {"dtype": "bfloat16", "device": "cpu"}})
    assert "dtype 'bfloat16'" in judged(now).artifacts[0].reasons[0]


def test_the_seed_of_intervals_does_not_matter() -> None:
    settings = {"dtype": "float32", "device": "cpu", "seed": 9}
    assert judged(measured().model_copy(update={"settings": settings})).outcome == "pass"


def test_a_level_that_was_not_run_is_not_comparable() -> None:
    verdict = judged(with_level(measured(), not_run="mlx-lm is not installed", slices=()))
    assert verdict.exit_code == 11
    assert "nothing of it was measured" in verdict.artifacts[0].reasons


def test_a_slice_of_other_tokens_is_not_comparable() -> None:
    (level,) = measured().artifacts[0].levels
    slices = (level.slices[0].model_copy(update={"token_stream": "x"}), level.slices[1])
    verdict = judged(with_level(measured(), slices=slices))
    assert verdict.artifacts[0].reasons == (
        "level reference: slice 'english' was measured on other tokens",
    )


def test_an_artifact_that_the_baseline_does_not_hold_gets_the_command_that_adds_it() -> None:
    verdict = judged(measured(name="new; rm -rf"))
    assert verdict.exit_code == 11
    assert (
        verdict.artifacts[0]
        .reasons[0]
        .endswith(
            "to add it: gemquant gate 'new; rm -rf' --baseline ci/base.json --update-baseline "
            "--reason 'a new artifact'"
        )
    )


def test_a_regression_weighs_more_than_what_cannot_be_compared() -> None:
    verdict = judge(
        [worse(0.05), measured(name="new")], baseline_of(measured()), KL_ALONE, file="b"
    )
    assert verdict.exit_code == 10


def test_an_artifact_that_was_not_measured_is_told() -> None:
    baseline = baseline_of(measured(), measured(name="gemma-nf4"))
    verdict = judge([measured()], baseline, KL_ALONE, file="b")
    assert verdict.notes == ("'gemma-nf4' is in the baseline and was not measured",)


def test_control_characters_of_a_name_do_not_reach_a_message() -> None:
    hostile = "\x1b[2Jgemma<script>"
    verdict = judge(
        [with_artifact(worse(0.05), name=hostile)],
        baseline_of(measured(name=hostile)),
        KL_ALONE,
        file="b",
    )
    assert all(each.isprintable() for each in verdict.artifacts[0].reasons)


def test_two_hundred_artifacts_of_six_slices_are_judged_together() -> None:
    kl = {f"slice-{n}": divergences(16, seed=n) for n in range(6)}
    many = document(*(artifact(f"a{n}", kl=kl) for n in range(200)))
    assert judge([many], baseline_of(many), Budgets(), file="b").outcome == "pass"
