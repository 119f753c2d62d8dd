"""JUnit XML: what Jenkins' schema allows, and failures exactly where the gate fails."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.errors import UsageError
from gemquant.measure.gate.verdict import Check, Outcome
from gemquant.measure.report.document import Report
from gemquant.measure.report.junit import to_junit
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_report import check, report

SCHEMA = xmlschema.XMLSchema(Path(__file__).parents[3] / "schemas" / "junit-10.xsd")
OUTCOMES: tuple[Outcome, ...] = (
    "pass",
    "regression",
    "inconclusive",
    "not-comparable",
    "reported",
)


def parsed(made: Report) -> ET.Element:
    text = to_junit(made)
    SCHEMA.validate(text.decode().split("\n", 1)[1])
    return ET.fromstring(text)


def test_one_case_per_check() -> None:
    root = parsed(report(check(), check("regression", slice="code")))
    names = [each.get("name") for each in root.iter("testcase")]
    assert names == [
        "reference: english: KL mean, nats/token",
        "reference: code: KL mean, nats/token",
    ]


@pytest.mark.parametrize(
    ("outcome", "tag"),
    [
        ("pass", None),
        ("regression", "failure"),
        ("inconclusive", "error"),
        ("not-comparable", "error"),
        ("reported", "skipped"),
    ],
)
def test_an_outcome_has_its_element(outcome: Outcome, tag: str | None) -> None:
    (case,) = parsed(report(check(outcome))).iter("testcase")
    assert [each.tag for each in case] == ([] if tag is None else [tag])


def test_a_failure_names_the_layer() -> None:
    (failure,) = parsed(report(check("regression"))).iter("failure")
    assert "The error of hidden states rises at layer 2" in (failure.text or "")


@pytest.mark.parametrize("outcomes", list(product(OUTCOMES, repeat=2)), ids="+".join)
def test_something_fails_exactly_where_the_gate_does(outcomes: tuple[Outcome, ...]) -> None:
    made = report(*(check(each) for each in outcomes))
    root = parsed(made)
    failed = int(root.get("failures", "")) + int(root.get("errors", ""))
    assert made.verdict is not None
    assert (failed > 0) == (made.verdict.exit_code != 0)


def test_an_artifact_that_could_not_be_compared_at_all_is_an_error() -> None:
    made = report(check())
    assert made.verdict is not None
    (of,) = made.verdict.artifacts
    alone = of.model_copy(
        update={"outcome": "not-comparable", "checks": (), "reasons": ("not in the baseline",)}
    )
    changed = made.verdict.model_copy(
        update={"artifacts": (alone,), "outcome": "not-comparable", "exit_code": 11}
    )
    (error,) = parsed(dataclasses.replace(made, verdict=changed)).iter("error")
    assert error.get("message") == "not in the baseline"


def test_an_inconclusive_check_is_skipped_where_budgets_only_warn() -> None:
    made = report(check("inconclusive"))
    assert made.verdict is not None
    warned = dataclasses.replace(made, verdict=made.verdict.model_copy(update={"exit_code": 0}))
    assert [each.tag for case in parsed(warned).iter("testcase") for each in case] == ["skipped"]


def test_cases_of_one_name_are_told_apart() -> None:
    root = parsed(report(check(), check("regression")))
    names = [each.get("name") for each in root.iter("testcase")]
    assert names[1] == f"{names[0]} (2)"


def test_a_level_that_was_not_run_is_skipped() -> None:
    absent = LevelEvaluation(level="native", runtime="mlx-lm", not_run="mlx is not installed")
    one = artifact("a", kl={"english": [0.1]})
    one = one.model_copy(update={"levels": (*one.levels, absent)})
    (skipped,) = parsed(report(check(), of=document(one))).iter("skipped")
    assert skipped.get("message") == "not run: mlx is not installed"


def test_hostile_names_are_legal_xml() -> None:
    name = "<script>\x00\x1b[31m\"'&]]>\ufffe\ud800"
    hostile: Check = check("regression", slice=name)
    made = report(check(), of=document(artifact("a", kl={"english": [0.1]})))
    assert made.verdict is not None
    (of,) = made.verdict.artifacts
    changed = of.model_copy(update={"checks": (hostile,), "outcome": "regression"})
    root = parsed(
        dataclasses.replace(made, verdict=made.verdict.model_copy(update={"artifacts": (changed,)}))
    )
    (case,) = root.iter("testcase")
    assert "<script>⟨U+0000⟩⟨U+001B⟩" in (case.get("name") or "")


def test_without_a_verdict_there_is_none() -> None:
    with pytest.raises(UsageError, match="no verdict"):
        to_junit(report())
