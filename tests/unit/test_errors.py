"""Errors: what a user sees, and the exit code of each class."""

from __future__ import annotations

import pytest

from gemquant.errors import (
    ArtifactError,
    CalibrationError,
    CheckpointError,
    GemquantError,
    OutputError,
    ProblemCollector,
    Problems,
    RuntimeMissingError,
    UnsupportedError,
    UsageError,
    refuse,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GemquantError, 1),
        (UsageError, 2),
        (CheckpointError, 3),
        (UnsupportedError, 4),
        (CalibrationError, 5),
        (ArtifactError, 6),
        (OutputError, 7),
        (RuntimeMissingError, 8),
    ],
)
def test_each_class_has_its_exit_code(error: type[GemquantError], code: int) -> None:
    assert error("x").exit_code == code


def test_a_hint_follows_on_its_own_line() -> None:
    assert str(UsageError("bad.", hint="Do this.")) == "bad.\n  hint: Do this."


def test_one_problem_is_raised_as_itself() -> None:
    problem = OutputError("no room.")
    with pytest.raises(OutputError) as raised:
        refuse([problem])
    assert raised.value is problem


def test_several_problems_are_numbered_and_exit_with_the_code_of_the_first() -> None:
    with pytest.raises(Problems) as raised:
        refuse([ArtifactError("a.", hint="h."), UsageError("b.")])
    assert str(raised.value) == "2 problems:\n  1. a.\n     hint: h.\n  2. b."
    assert raised.value.exit_code == 6


def test_no_problem_is_no_error() -> None:
    refuse([])


def test_a_problem_is_reported_once_and_another_class_of_the_same_words_is_another() -> None:
    with pytest.raises(Problems) as raised:
        refuse([UsageError("a."), Problems([UsageError("a."), OutputError("a.")])])
    assert [type(problem) for problem in raised.value.problems] == [UsageError, OutputError]


def test_a_step_that_needs_a_failed_one_adds_no_second_problem() -> None:
    problems = ProblemCollector()
    model = problems.attempt(lambda: refuse([CheckpointError("no model.")]))
    layers = problems.attempt(lambda: model.value)
    assert not layers.succeeded
    with pytest.raises(CheckpointError, match="no model"):
        problems.refuse()


def test_an_unexpected_error_is_not_collected() -> None:
    with pytest.raises(ZeroDivisionError):
        ProblemCollector().attempt(lambda: 1 // 0)
