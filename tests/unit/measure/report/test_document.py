"""What stands beside what in a report, and what is refused."""

from __future__ import annotations

import pytest

from gemquant.core.artifact.evaluation import EvaluationDocument, LevelEvaluation
from gemquant.errors import NotComparableError, Problems, UsageError
from gemquant.measure.report.document import assemble
from tests.helpers.tiny_evaluation import artifact, document, measured_slice
from tests.helpers.tiny_report import baseline, check, given, verdict


def evaluation(*names: str, **changes: object) -> EvaluationDocument:
    made = document(
        *(
            artifact(name, kl={"english": [0.1]}).model_copy(update={"digest": f"sha256:{number}"})
            for number, name in enumerate(names)
        )
    )
    return made.model_copy(update=changes)


def test_evaluations_on_the_same_tokens_are_one_comparison() -> None:
    report = assemble([given("evaluation", evaluation(name)) for name in ("a", "b")])
    assert [[each.label for each in one.artifacts] for one in report.comparisons] == [["a", "b"]]


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"dtype": "bfloat16"}},
        {"suite": document().suite.model_copy(update={"version": 2})},
        {"suite": document().suite.model_copy(update={"token_stream": "sha256:0"})},
        {"original": document().original.model_copy(update={"digest": "sha256:0"})},
    ],
    ids=["settings", "suite version", "tokens", "original"],
)
def test_figures_that_may_not_be_compared_stand_apart(other: dict[str, object]) -> None:
    report = assemble(
        [given("evaluation", evaluation("a")), given("evaluation", evaluation("b", **other))]
    )
    assert [len(each.artifacts) for each in report.comparisons] == [1, 1]


def test_artifacts_of_one_name_are_told_apart_by_their_digests() -> None:
    report = assemble([given("evaluation", evaluation("a", "a", "b"))])
    assert [each.label for each in report.comparisons[0].artifacts] == ["a (0)", "a (1)", "b"]


def test_the_front_is_of_one_level_and_one_slice() -> None:
    small = artifact("small", kl={"english": [0.3], "code": [0.1]}, size_bytes=10)
    large = artifact("large", kl={"english": [0.1], "code": [0.2]}, size_bytes=20)
    native = LevelEvaluation(
        level="native", runtime="llama.cpp", slices=(measured_slice("english", kl=[0.9]),)
    )
    large = large.model_copy(update={"levels": (*large.levels, native)})
    (comparison,) = assemble([given("evaluation", document(small, large))]).comparisons
    fronts = {
        (each.level, each.slice): [point.label for point in each.points if point.on_front]
        for each in comparison.tradeoffs
    }
    assert fronts == {
        ("reference", None): ["small", "large"],
        ("reference", "english"): ["small", "large"],
        ("reference", "code"): ["small"],
        ("native", None): ["large"],
    }


def test_all_slices_together_weigh_tokens_alike() -> None:
    one = artifact("a", kl={"english": [0.1, 0.1, 0.1], "code": [0.5]})
    (comparison,) = assemble([given("evaluation", document(one))]).comparisons
    assert comparison.tradeoffs[0].points[0].kl_mean == pytest.approx(0.2)


def test_an_artifact_on_fewer_slices_is_not_among_all_slices() -> None:
    both = artifact("both", kl={"english": [0.1], "code": [0.1]})
    one = artifact("one", kl={"english": [0.01]})
    (comparison,) = assemble([given("evaluation", document(both, one))]).comparisons
    assert [point.label for point in comparison.tradeoffs[0].points] == ["both"]


def test_everything_wrong_is_told_at_once() -> None:
    here, elsewhere = evaluation("a"), evaluation("b")
    other = elsewhere.original.model_copy(update={"digest": "sha256:0"})
    with pytest.raises(Problems) as refused:
        assemble(
            [given("evaluation", here), given("evaluation", here)],
            verdict=given("verdict", verdict(elsewhere, check())),
            baseline=given("baseline", baseline(elsewhere.model_copy(update={"original": other}))),
        )
    kinds = [type(each) for each in refused.value.problems]
    assert kinds == [UsageError, NotComparableError, NotComparableError]


def test_an_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="No artifact"):
        assemble([given("evaluation", evaluation("a", artifacts=()))])
