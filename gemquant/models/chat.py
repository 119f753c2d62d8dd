"""Chat templates: which one to use, and a sandbox that renders it.

    <bos><start_of_turn>user
    Hello<end_of_turn>
    <start_of_turn>model
    Good morning.<end_of_turn>

A template comes with the checkpoint and is therefore untrusted: it runs in jinja2's immutable
sandbox, where source, output, ranges, sums, repetitions and powers are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemquant.errors import CalibrationError, CheckpointError, UsageError
from gemquant.models.chat_templates import STOCK, VARIANTS

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": "…"}"""

LONGEST_TEMPLATE = 100_000
"""Characters of a template's source; the longest known of any Gemma has under 20,000."""

LONGEST_CONVERSATION = 4_000_000
"""Characters that one conversation may be rendered to."""


def choose_template(choice: str | None, own: str | None) -> str:
    """The template to use: what the user chose, else the checkpoint's own, else STOCK.

    choice: a variant's name, the path of a file, or None. own: the checkpoint's template.
    Raises UsageError for a name that is neither, or a file that cannot be read or parsed.
    """
    if choice is None:
        return own if own is not None else STOCK
    if choice in VARIANTS:
        return VARIANTS[choice]
    path = Path(choice)
    named = f"--chat-template {choice}"
    if not path.is_file():
        raise UsageError(
            f"{named}: neither a file nor one of {', '.join(VARIANTS)}.",
            hint="Name a file with a Jinja template, as in chat_template.jinja.",
        )
    try:
        with path.open(encoding="utf-8") as file:
            source = file.read(LONGEST_TEMPLATE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{named}: cannot be read: {error}.") from None
    try:
        _compiled(source)
    except CheckpointError as error:
        raise UsageError(f"{named}: {error.message}", hint=error.hint) from None
    return source


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "<bos>",
    eos: str = "<eos>",
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as the text that the model was trained on.

    bos, eos: the template's bos_token and eos_token; pass "" where <bos> is added elsewhere.
    Raises CheckpointError if the template itself is broken, CalibrationError if it refuses this
    conversation or makes too much of it.
    """
    if not messages:
        raise CalibrationError("a conversation has no messages; it needs at least one.")
    compiled = _compiled(template)
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled.generate(
            messages=[dict(message) for message in messages],
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
        ):
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST_CONVERSATION:
                raise SecurityError(f"its output exceeds {LONGEST_CONVERSATION} characters")
    except _RefusedError as refusal:
        raise CalibrationError(
            f"the chat template refuses a conversation of roles "
            f"{', '.join(str(m.get('role')) for m in messages[:6])}: {refusal.message}.",
            hint="Give --chat-template system-in-user, or leave out what the template refuses.",
        ) from None
    except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise CheckpointError(
            f"the chat template fails on a conversation: {str(error).rstrip('.')}.",
            hint=f"Choose another with --chat-template {'|'.join(VARIANTS)}|FILE.",
        ) from None
    return "".join(pieces)


class _RefusedError(TemplateRuntimeError):
    """Raised by a template's own raise_exception."""


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message).rstrip("."))


def _tojson(value: object, indent: int | None = None) -> str:
    # As transformers does: jinja2's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with operators bounded: 'a' * 10**10 would exhaust the memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = sum(len(side) for side in (left, right) if isinstance(side, str | list | tuple))
        times = next((side for side in (left, right) if isinstance(side, int)), 0)
        if operator == "+" and size > LONGEST_CONVERSATION:
            raise SecurityError("a text is too long")
        if operator == "*" and size * times > LONGEST_CONVERSATION:
            raise SecurityError("a repetition is too long")
        if operator == "**" and (abs(left) > 2**64 or abs(right) > 64):
            raise SecurityError("a power is too large")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the % operator formats no strings here")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    if len(source) > LONGEST_TEMPLATE:
        raise CheckpointError(
            f"the chat template has more than {LONGEST_TEMPLATE} characters.",
            hint=f"Choose another with --chat-template {'|'.join(VARIANTS)}|FILE.",
        )
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}.",
            hint=f"Choose another with --chat-template {'|'.join(VARIANTS)}|FILE.",
        ) from None
