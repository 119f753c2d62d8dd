r"""Gemma's chat templates, under the names that --chat-template knows.

    stock            <bos><start_of_turn>user\nHello<end_of_turn>\n
    system           <bos><start_of_turn>system\nBe brief.<end_of_turn>\n
                     <start_of_turn>user\nHello<end_of_turn>\n
    system-in-user   <bos><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n
    systemgemma2     <bos>Be brief.\n<start_of_turn>user\nHello<end_of_turn>\n

Source: https://ai.google.dev/gemma/docs/core/prompt-structure for turns and for system-in-user, as
the template of Gemma 3 has it; https://huggingface.co/google/gemma-2-2b-it/discussions/25, by the
author of SystemGemma2, for where those models read the system's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Content is a text, or a list of parts as clients of OpenAI's interface send it.
_WORDS = """\
{%- macro words(content) -%}
    {%- if content is string -%}
        {{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] != 'text' -%}
                {{ raise_exception('only parts of type text are understood') }}
            {%- endif -%}
            {{ part['text'] }}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

# Each turn in Gemma's own form; `prefix` is what is put before the first user's words.
_TURNS = """\
{%- for message in turns -%}
    {%- if message['role'] != ('user', 'assistant')[loop.index0 % 2] -%}
        {{ raise_exception('roles must alternate user, assistant, and so on') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {{- prefix if loop.first else '' }}
    {{- words(message['content']) | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

_BEGINNING = (
    _WORDS
    + """\
{{ bos_token }}
{%- set turns = messages -%}
{%- set prefix = '' -%}
{%- if messages[0]['role'] == 'system' -%}
"""
)

_SYSTEM = {
    "stock": """\
    {{ raise_exception('the system role is not supported') }}
""",
    "system": """\
    {{ '<start_of_turn>system\\n' + words(messages[0]['content']) | trim + '<end_of_turn>\\n' }}
    {%- set turns = messages[1:] -%}
""",
    "system-in-user": """\
    {%- set prefix = words(messages[0]['content']) + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
""",
    "systemgemma2": """\
    {{ words(messages[0]['content']) + '\\n' }}
    {%- set turns = messages[1:] -%}
""",
}

VARIANTS: Mapping[str, str] = MappingProxyType(
    {name: f"{_BEGINNING}{system}{{%- endif -%}}\n{_TURNS}" for name, system in _SYSTEM.items()}
)
"""Templates that --chat-template knows by name.

stock: user and model turns; a system turn is refused, as by the templates of Gemma 1 and 2.
system: a turn of its own for the system role, for models that were trained on one.
system-in-user: the system's words open the first user turn, as in the template of Gemma 3.
systemgemma2: the system's words stand bare before the first turn, as in SystemGemma2's template.
"""


@dataclass(frozen=True)
class ChatFormat:
    """How a generation marks turns.

    start, end: tokens around each turn. thought: tokens around thoughts before an answer. stock,
    chat: names in ``VARIANTS`` of its own template, and of the one for chat where a model brings
    none.
    """

    start: str = "<start_of_turn>"
    end: str = "<end_of_turn>"
    thought: tuple[str, ...] = ()
    stock: str = "stock"
    chat: str = "system-in-user"

    def template(self, name: str) -> str:
        """A variant with this format's tokens; "stock" is the generation's own."""
        source = VARIANTS[self.stock if name == "stock" else name]
        return source.replace("<start_of_turn>", self.start).replace("<end_of_turn>", self.end)
