"""Bounds of the JSON that clients send to llama.cpp, whose parsers have none."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

from gemquant.runtimes.chat.media import LimitError, Sense, check_media

MAX_DEPTH = 64
MAX_VALUES = 500_000
MAX_REPETITIONS = 10_000
"""Of an element in a schema, a pattern or a grammar."""
MAX_REPETITIONS_IN_ALL = 100_000
MAX_GRAMMAR = 65_536
MAX_ANSWERS = 8
_MAX_PROMPTS = 64
_MAX_PROPERTIES = 500
_MAX_SCHEMA_VALUES = 20_000
_MAX_PROBABILITIES = 1_000

_REPEATED = {
    *("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
    *("minContains", "maxContains"),
}
_TOKENS = {
    *("n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens", "n_keep"),
    *("n_discard", "repeat_last_n", "penalty_last_n", "dry_penalty_last_n", "dry_allowed_length"),
}
"""Counts of tokens; a larger one than the context means as much as the context."""
_PROBABILITIES = {"n_probs", "top_logprobs", "logprobs", "min_keep"}
_TEXTS = {"messages", "prompt", "input", "input_prefix", "input_suffix", "content", "system"}
"""Members that contain no schema."""
_BRACES = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


def bounded_body(body: bytes, context: int, senses: Collection[Sense] = ()) -> bytes:
    """Return a JSON object written anew, so that all parsers read the same; LimitError otherwise.

    context: tokens; larger counts of tokens are reduced to it. senses: what the model has.
    """
    try:
        content = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise LimitError(f"the JSON is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise LimitError(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise LimitError("the body is not a JSON object")
    _check_size(content, MAX_DEPTH, MAX_VALUES, "the JSON")
    _check_parameters(content, context)
    check_media(_tables(content), senses)
    _check_schemas({key: value for key, value in content.items() if key not in _TEXTS})
    try:
        return json.dumps(content, allow_nan=False).encode("ascii")
    except ValueError:
        raise LimitError("a number is too large") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_parameters(content: dict[str, Any], context: int) -> None:
    for key in ("n", "n_cmpl", "best_of"):
        value = content.get(key)
        if _is_number(value) and value > MAX_ANSWERS:
            raise LimitError(f"{key} {value}: must be at most {MAX_ANSWERS}")
    for key in _TOKENS & content.keys():
        value = content[key]
        if _is_number(value) and value > context:
            content[key] = context
    for key in _PROBABILITIES & content.keys():
        value = content[key]
        if _is_number(value) and value > _MAX_PROBABILITIES:
            raise LimitError(f"{key} {value}: must be at most {_MAX_PROBABILITIES}")
    for key in ("prompt", "input", "stop"):
        value = content.get(key)
        if isinstance(value, list) and sum(not _is_number(e) for e in value) > _MAX_PROMPTS:
            raise LimitError(f"{key}: must have at most {_MAX_PROMPTS} elements")


def _check_schemas(content: Mapping[str, Any]) -> None:
    _check_size(content, MAX_DEPTH, _MAX_SCHEMA_VALUES, "everything but messages and prompt")
    total = 0
    for table in _tables(content):
        if len(table) > _MAX_PROPERTIES:
            raise LimitError(f"an object has more than {_MAX_PROPERTIES} members")
        for key, value in table.items():
            if key in _REPEATED and _is_number(value):
                total += _repetitions(key, value)
            elif key in {"pattern", "grammar"} and isinstance(value, str):
                total += _check_grammar(key, value)
    if total > MAX_REPETITIONS_IN_ALL:
        raise LimitError(f"schemas and grammars repeat elements {total} times")


def _check_grammar(name: str, text: str) -> int:
    """Check a grammar or a regular expression; return what its repetitions add up to."""
    if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR:
        raise LimitError(f"{name}: longer than {MAX_GRAMMAR} bytes")
    depth = 0
    for bracket in re.sub("[^()]", "", text):
        depth = depth + 1 if bracket == "(" else max(depth - 1, 0)
        if depth > MAX_DEPTH:
            raise LimitError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    total, product = 0, 1
    for match in _BRACES.finditer(text):
        counts = [int(digits.lstrip("0")[:9] or 0) for digits in match.groups("")]
        count = max(_repetitions(name, each) for each in counts)
        total += count
        # Only what repeats a group multiplies what the group repeats.
        product *= max(count, 1) if text[: match.start()].rstrip().endswith(")") else 1
    if total * product > MAX_REPETITIONS_IN_ALL:
        raise LimitError(f"{name}: repeats elements more than {MAX_REPETITIONS_IN_ALL} times")
    return total


def _repetitions(name: str, value: float) -> int:
    if abs(value) > MAX_REPETITIONS:
        raise LimitError(f"{name} {value}: must be at most {MAX_REPETITIONS}")
    return int(abs(value))


def _check_size(root: Any, depth: int, values: int, name: str) -> None:
    waiting, count = [(root, 1)], 0
    while waiting:
        value, level = waiting.pop()
        count += 1
        if level > depth:
            raise LimitError(f"{name}: nested deeper than {depth} levels")
        if count > values:
            raise LimitError(f"{name}: more than {values} values")
        if isinstance(value, dict):
            waiting += [(each, level + 1) for each in value.values()]
        elif isinstance(value, list):
            waiting += [(each, level + 1) for each in value]


def _tables(root: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
