"""Chat templates: which one to use, what it is given, and its text for a conversation.

    <bos><start_of_turn>user
    Hello<end_of_turn>
    <start_of_turn>model
    Good morning.<end_of_turn>

A template comes with the checkpoint and is therefore untrusted: every one, the built-in ones too,
is rendered by ``template_process``, so that there is one way, and jinja2 is sandboxed there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemquant.errors import CalibrationError, CheckpointError, UsageError
from gemquant.models.chat_templates import VARIANTS, ChatFormat
from gemquant.models.template_process import (
    LIMITS,
    ExhaustedError,
    InvalidError,
    Limits,
    RefusedError,
    Renderer,
    RenderingError,
    shared_renderer,
)

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": "…"}"""

SpecialTokens = Mapping[str, str | Sequence[str]]
"""A template's variables for special tokens: bos_token, eos_token, image_token; a list for
additional_special_tokens."""

LONGEST_TEMPLATE = 100_000
"""Characters of a template's source; the longest known of any Gemma has under 20,000."""

GEMMA_TOKENS: SpecialTokens = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
"""What Gemma's tokenizer classes in transformers have where the files name no other."""

_HINT = f"Choose another with --chat-template {'|'.join(VARIANTS)}|FILE."
_TOO_LONG = f"the chat template has more than {LONGEST_TEMPLATE} characters."
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja source, and the special tokens of the tokenizer that it is used with."""

    source: str
    special_tokens: SpecialTokens = field(default_factory=lambda: GEMMA_TOKENS)


def choose_template(choice: str | None, own: str | None, chat: ChatFormat) -> str:
    """The source to use: what the user chose, else the checkpoint's own, else the stock one.

    choice: a variant's name, the path of a file, or None. own: the checkpoint's template. chat:
    the architecture's format.
    Raises UsageError for a name that is neither, or a file that cannot be read or parsed,
    CheckpointError for one that exceeds a limit.
    """
    if choice is None:
        return own if own is not None else chat.template("stock")
    if choice in VARIANTS:
        return chat.template(choice)
    path = Path(choice)
    option = f"--chat-template {choice}"
    if not os.path.isfile(path):  # noqa: PTH113 - False for a name that is too long
        raise UsageError(
            f"{option}: neither a file nor one of {', '.join(VARIANTS)}.",
            hint="Name a file with a Jinja template, as in chat_template.jinja.",
        )
    try:
        with path.open(encoding="utf-8") as file:
            source = file.read(LONGEST_TEMPLATE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: cannot be read: {error}.") from None
    if len(source) > LONGEST_TEMPLATE:
        raise UsageError(f"{option}: {_TOO_LONG}", hint=_HINT)
    try:
        shared_renderer("chat").render(source, None)
    except RenderingError as error:
        kind = UsageError if isinstance(error, InvalidError) else CheckpointError
        raise kind(f"{option}: {_why(error, 'cannot be compiled')}", hint=_HINT) from None
    return source


def _why(error: RenderingError, what: str) -> str:
    invalid = "is not valid Jinja" if isinstance(error, InvalidError) else what
    return f"the chat template {invalid}: {error}."


def special_tokens(
    tokenizer_config: Mapping[str, Any],
    special_tokens_map: Mapping[str, Any],
    ids: Mapping[str, Any],
    token_of: Callable[[int], str | None],
) -> SpecialTokens:
    """The variables that transformers passes to a chat template, from a tokenizer's files.

    tokenizer_config, special_tokens_map: content of the files of these names; values are texts or
    serialized AddedTokens. ids: a configuration with ``bos_token_id`` and the like, for what the
    files do not name. token_of: the token of an id. A token that tokenizer_config sets to null
    stays undefined.
    """
    tokens: dict[str, str | Sequence[str]] = {}
    for source in (tokenizer_config, special_tokens_map):
        extra = source.get("extra_special_tokens")
        named = {**(extra if isinstance(extra, dict) else {}), **source}
        for name, value in named.items():
            text = _token_text(value)
            if text is not None and (name.endswith("_token") or name not in source):
                tokens.setdefault(name, text)
        listed = source.get("additional_special_tokens", extra)
        if isinstance(listed, list):
            texts = [text for text in map(_token_text, listed) if text is not None]
            tokens.setdefault("additional_special_tokens", texts)
    for name, usual in GEMMA_TOKENS.items():
        if name in tokens or (name in tokenizer_config and tokenizer_config[name] is None):
            continue
        index = ids.get(f"{name}_id")
        first: Any = index[0] if isinstance(index, list) and index else index
        known = isinstance(first, int) and 0 <= first < 2**31
        tokens[name] = (token_of(first) if known else None) or usual
    return tokens


def _token_text(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def render(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as the text that the model was trained on, as transformers renders it.

    Raises CheckpointError if the template is broken or exceeds a limit, CalibrationError if it
    refuses this conversation.
    """
    if not messages:
        raise CalibrationError("a conversation has no messages; it needs at least one.")
    if len(template.source) > LONGEST_TEMPLATE:
        raise CheckpointError(_TOO_LONG, hint=_HINT)
    values = _values(template, messages, tools, documents, add_generation_prompt)
    try:
        return shared_renderer("chat").render(template.source, values)
    except RefusedError as refusal:
        raise CalibrationError(
            f"the chat template refuses a conversation of roles "
            f"{', '.join(str(m.get('role')) for m in messages[:6])}: {refusal}.",
            hint="Give --chat-template system-in-user, or leave out what the template refuses.",
        ) from None
    except RenderingError as error:
        raise CheckpointError(_why(error, "fails on a conversation"), hint=_HINT) from None


def _values(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
) -> dict[str, Any]:
    return {
        **template.special_tokens,
        "messages": [_with_reasoning(message) for message in messages],
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
    }


def _with_reasoning(message: Message) -> Message:
    """A message's reasoning under each name that templates read it by, as in transformers."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


# ---------------------------------------------------------------- before llama.cpp renders it

_PROBE_LIMITS = Limits(memory_bytes=192 * 2**20, cpu_seconds=1, seconds=10.0, longest=400_000)
_MOST_PROBES = 400


def check_template(template: ChatTemplate) -> None:
    """Raise CheckpointError where a template may exhaust llama.cpp, which sets it no limits.

    The template is tried on conversations such as llama.cpp tries while it loads a model, and such
    as the template itself seems to wait for. What it refuses is no reason.
    """
    end = time.monotonic() + LIMITS.seconds
    with closing(Renderer("probe", _PROBE_LIMITS)) as renderer:
        try:
            renderer.render(template.source, None)
        except RenderingError as error:
            raise CheckpointError(_why(error, "cannot be compiled"), hint=_HINT) from None
        for values in _probes(template):
            try:
                renderer.render(template.source, values)
            except ExhaustedError as error:
                raise _exhausting(str(error)) from None
            except RenderingError:
                pass
            if time.monotonic() > end:
                raise _exhausting(f"short conversations take more than {LIMITS.seconds:g} s")


def _exhausting(reason: str) -> CheckpointError:
    return CheckpointError(f"the chat template would exhaust llama.cpp: {reason}.", hint=_HINT)


def _probes(template: ChatTemplate) -> Iterator[dict[str, Any]]:
    """Variables to try a template with: the usual first."""
    source = template.source
    numbers = {int(digits) for digits in re.findall(r"\b\d{1,3}\b", source)}
    lengths = {n + more for n in numbers if n <= 256 for more in (-1, 0, 1)} - {-1}
    literals = [
        one or other for one, other in re.findall(r"'([^']{1,80})'|\"([^\"]{1,80})\"", source)
    ]
    system = {"role": "system", "content": "Be brief."}
    conversations: list[Sequence[Message]] = [_turns(n) for n in (1, 2, 3, 4, 8, 0, 20)]
    conversations += [[system, *_turns(n)] for n in (0, 1, 3)]
    conversations += [_TOOL_TURNS, _TOOL_TURNS[:2], _THOUGHT_TURNS, _PART_TURNS]
    for messages in conversations:
        for prompt in (True, False):
            yield _values(template, messages, None, None, prompt)
    for messages in (_turns(1), [system, *_turns(1)], _TOOL_TURNS, _TOOL_TURNS[:2]):
        for thinking in (True, False):
            values = _values(template, messages, _TOOLS, _DOCUMENTS, True)
            yield {**values, "enable_thinking": thinking}
    for length in sorted(lengths)[:_MOST_PROBES]:
        yield _values(template, _turns(length), None, None, True)
    every = " ".join(literals)
    for text in [every, *dict.fromkeys(literals)][:_MOST_PROBES]:
        yield _values(template, [{"role": "user", "content": text}], None, None, True)
        yield _values(template, [*_turns(1), {"role": text, "content": text}], None, None, True)


def _turns(count: int) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": f"Hello {n}"} for n in range(count)]


_TOOLS: Sequence[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A town."},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "of": {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}},
                },
                "required": ["place"],
            },
        },
    }
    for name in ("weather", "forecast")
]
_DOCUMENTS: Sequence[Mapping[str, Any]] = [{"title": "Weather", "text": "It rains in Zurich."}]
_TOOL_TURNS: Sequence[Message] = [
    {"role": "user", "content": "How is the weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": str(n), "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(
                [("weather", {"place": "Zurich"}), ("forecast", '{"place": "Zurich"}')]
            )
        ],
    },
    {"role": "tool", "tool_call_id": "0", "name": "weather", "content": "It rains."},
    {"role": "assistant", "content": "It rains."},
]
_THOUGHT_TURNS: Sequence[Message] = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So.", "reasoning_content": "Because."},
    {"role": "user", "content": "Why?"},
]
_PART_TURNS: Sequence[Message] = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]}
]
