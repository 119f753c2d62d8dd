from __future__ import annotations

from typing import Any

import pytest

from gemquant.runtimes.sampling import Sampling


def test_the_defaults_are_in_range():
    assert Sampling().problems() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1: must be from 0 to 10."),
        ({"temperature": float("nan")}, "--temperature nan: must be from 0 to 10."),
        ({"top_p": 0.0}, "--top-p 0.0: must be above 0, and at most 1."),
        ({"top_k": -1}, "--top-k -1: must be at least 0 (0 for no limit)."),
        ({"max_tokens": 0}, "--max-tokens 0: must be at least 1."),
        ({"seed": -1}, "--seed -1: must be from 0 to 4294967294."),
        ({"seed": 2**32 - 1}, "--seed 4294967295: must be from 0 to 4294967294."),
    ],
)
def test_what_is_out_of_range_is_named(given: dict[str, Any], message: str):
    assert [str(problem) for problem in Sampling(**given).problems()] == [message]


def test_everything_is_reported_at_once():
    assert len(Sampling(temperature=99, top_p=2, top_k=-1).problems()) == 3
