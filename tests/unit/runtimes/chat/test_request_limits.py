from __future__ import annotations

import json
from typing import Any

import pytest

from gemquant.runtimes.chat.request_limits import LimitError, bounded_body


def bounded(content: Any) -> Any:
    return json.loads(bounded_body(json.dumps(content).encode(), 512))


def refusal(body: bytes) -> str:
    with pytest.raises(LimitError) as error:
        bounded_body(body, 512)
    return str(error.value)


def schema(content: object) -> bytes:
    return json.dumps({"response_format": {"json_schema": {"schema": content}}}).encode()


@pytest.mark.parametrize("levels", [60, 5_000, 500_000])
def test_deep_json_is_refused(levels: int) -> None:
    body = b'{"json_schema":' + b'{"items":' * levels + b"{}" + b"}" * levels + b"}"
    if levels == 60:
        bounded_body(body, 512)
    else:
        assert "nested deeper than 64 levels" in refusal(body)


@pytest.mark.parametrize(
    "key", ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]
)
@pytest.mark.parametrize("value", [10_001, 10**9, 1e300, -(10**9)])
def test_a_schema_repeats_an_element_ten_thousand_times_at_most(key: str, value: float) -> None:
    assert "must be at most 10000" in refusal(schema({"type": "array", key: value}))
    bounded({"json_schema": {"items": {key: 10_000}}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root ::= "a"{1000000000}', "must be at most 10000"),
        ('root ::= "a"{2,00000000010001}', "must be at most 10000"),
        ('root ::= (("a"{9000}){9000})', "more than 100000 times"),
        ('root ::= ("a"){9000} ("b"){9000}', "more than 100000 times"),
        ("root ::= " + "(" * 65, "nested deeper than 64 levels"),
        ("root ::= " + "a" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_grammar_is_bounded(text: str, reason: str) -> None:
    assert reason in refusal(json.dumps({"grammar": text}).encode())
    if "longer" not in reason:
        assert reason in refusal(schema({"pattern": text}))


def test_many_small_repetitions_are_added() -> None:
    many = {str(number): {"maxLength": 9_999} for number in range(11)}
    assert "repeat elements 109989 times" in refusal(schema({"properties": many}))


def test_counts_of_tokens_are_reduced_to_the_context() -> None:
    assert bounded({"max_tokens": 10**12, "n_predict": -1, "repeat_last_n": 10**9}) == {
        "max_tokens": 512,
        "n_predict": -1,
        "repeat_last_n": 512,
    }


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"a": NaN}', b'{"a": 1e400}', b"\xff", b""])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body)


@pytest.mark.parametrize(
    "content",
    [{"n": 9}, {"n_cmpl": 1e9}, {"n_probs": 10**6}, {"prompt": ["a"] * 65}, {"prompt": [[1]] * 65}],
)
def test_a_request_cannot_ask_for_many_answers(content: object) -> None:
    assert "must" in refusal(json.dumps(content).encode())


def test_llamacpp_reads_what_was_checked() -> None:
    doubled = b'{"n": 99, "n": 1, "messages": [{"role": "user", "content": "\xc3\xa9 minItems"}]}'
    assert json.loads(bounded_body(doubled, 512)) == {
        "n": 1,
        "messages": [{"role": "user", "content": "é minItems"}],
    }


def test_texts_and_token_lists_are_no_schemas() -> None:
    bounded({"prompt": list(range(100_000)), "messages": [{"content": {"minItems": 10**9}}]})
