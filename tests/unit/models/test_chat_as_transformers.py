"""Templates of the kinds that are published, rendered here and by transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gemquant.models.chat import ChatTemplate, Message, render

TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
USER = {"role": "user", "content": " How is the weather in Zürich? <&> "}
TALK: list[Message] = [
    USER,
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "Why?"},
]
WITH_SYSTEM: list[Message] = [{"role": "system", "content": "Be brief."}, *TALK]
TOOL_TALK: list[Message] = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "weather", "arguments": {"place": "Zürich", "days": [1, 2]}},
            }
        ],
    },
    {"role": "tool", "name": "weather", "content": '{"rain": true}'},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a <place>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Zürich's name"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["place"],
            },
        },
    }
]
DOCUMENTS = [{"title": "Rain", "text": "It often rains."}, {"title": "Sun", "text": "Seldom."}]

GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
TRAINING = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}
{%- generation -%}{{- message.content | trim -}}{{- '<end_of_turn>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<start_of_turn>' + message.role + '\\n' + message.content | trim + '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
GENERATION_ALONE_ON_A_LINE = """\
{% for message in messages %}
  {% generation %}
  {% set seen = message.content %}
{{ message.role }}: {{ seen }}
  {% endgeneration %}
[{{ seen is defined }}]
{% endfor %}
"""
TOOLS_INDENTED = """\
{{ bos_token }}{% if tools is not none %}Functions:
{% for tool in tools %}
{{ tool | tojson(indent=4) }}

{% endfor %}{% endif %}
{% for message in messages %}{% if message.tool_calls is defined %}
{% for call in message.tool_calls %}
{{ {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}
{% endfor %}{% else %}{{ message.role }}|{{ message.content }}
{% endif %}{% endfor %}
"""
TOJSON_OPTIONS = """\
{{ tools | tojson(ensure_ascii=False, separators=(',', ':')) }}
{{ tools | tojson(ensure_ascii=True, sort_keys=True) }}
{{ messages | tojson(indent=2, separators=(',', ' : ')) }}
{{ {'b': 1.5, 'a': none, 'c': true} | tojson(sort_keys=true) }}
"""
RECURSIVE_MACRO = """\
{%- macro argument(value) -%}
    {%- if value is mapping -%}{ {%- for key in value | sort -%}
        {{ key }}:{{ argument(value[key]) }}{{ ',' if not loop.last }}
    {%- endfor -%} }
    {%- elif value is string -%}<escape>{{ value }}<escape>
    {%- elif value is sequence -%}[{%- for item in value -%}
        {{ argument(item) }}{{ ',' if not loop.last }}
    {%- endfor -%}]
    {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] -%}
    <start_function_declaration>{{ argument(tool.function) }}<end_function_declaration>
{%- endfor -%}
{%- for message in messages -%}
    {%- for call in message.tool_calls or [] -%}
        call:{{ call.function.name }}{{ argument(call.function.arguments) }}
    {%- endfor -%}
{%- endfor -%}
"""
GROUNDED = """\
{% if documents %}<results>
{% for document in documents %}
Document: {{ loop.index0 }}
{% for key, value in document.items() %}
{{ key }}: {{ value }}
{% endfor %}
{% endfor %}</results>
{% endif %}{{ messages[-1]['content'].strip() }}
"""
LOOP_CONTROLS = """\
{% for message in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}
{{ loop.index }}{{ message.content }}{% if loop.index == 3 %}{% break %}{% endif %}
{% endfor %}
"""
NAMESPACE = """\
{%- set ns = namespace(system='', turns=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
{%- endfor -%}
{{ ns.system }}{{ '%s of %03d|%-6s|%5.2f' % ('a', ns.turns, 'b', 1.5) }}{{ '%d' | format(7) }}
{{ '{:>8}'.format('x') }}{{ dict(a=1, b=2).items() | list }}{{ dict.fromkeys(['a'], 3) }}
"""
DATED = "{{ strftime_now('%d %B %Y') }}{{ strftime_now('%Y') | int > 2000 }}"
REASONING = """\
{% for message in messages %}{{ message.reasoning_content }}|{{ message.thinking }}|
{{ message.content.split('</think>')[-1].lstrip('\\n') }}{% endfor %}
"""
SPECIAL_TOKENS = "{{ bos_token }}{{ eos_token }}{{ pad_token }}[{{ unk_token }}{{ cls_token }}]"
FILTERS = """\
{{ messages | map(attribute='content') | select('string') | join('~') | upper | replace('A', 'é') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | last }}
{{ messages[0].content | safe | escape }}{{ messages[0].get('missing', 'none') }}
{{ none }}{{ true }}
"""

Case = tuple[str, list[Message], dict[str, Any]]
THOUGHT = [{"role": "assistant", "content": "a</think>\nSo.", "reasoning": "Because."}]
PARTS: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]}
]
CASES: dict[str, Case] = {
    "Gemma 3": (GEMMA3, TALK, {}),
    "Gemma 3, system": (GEMMA3, WITH_SYSTEM, {}),
    "Gemma 3, parts": (GEMMA3, PARTS, {}),
    "ChatML": (CHATML, WITH_SYSTEM, {}),
    "training": (TRAINING, TALK, {}),
    "generation alone on a line": (GENERATION_ALONE_ON_A_LINE, TALK, {}),
    "tools, none": (TOOLS_INDENTED, TALK, {}),
    "tools, indented": (TOOLS_INDENTED, TOOL_TALK, {"tools": TOOLS}),
    "tojson's options": (TOJSON_OPTIONS, TALK, {"tools": TOOLS}),
    "recursive macro": (RECURSIVE_MACRO, TOOL_TALK, {"tools": TOOLS}),
    "documents": (GROUNDED, TALK, {"documents": DOCUMENTS}),
    "documents, none": (GROUNDED, TALK, {}),
    "loop controls": (LOOP_CONTROLS, WITH_SYSTEM, {}),
    "namespace and formats": (NAMESPACE, WITH_SYSTEM, {}),
    "date": (DATED, TALK, {}),
    "reasoning": (REASONING, THOUGHT, {}),
    "special tokens": (SPECIAL_TOKENS, TALK, {}),
    "filters": (FILTERS, TALK, {}),
}


@pytest.mark.parametrize("prompt", [False, True], ids=["finished", "prompt"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_template_renders_as_in_transformers(name: str, prompt: bool):
    source, messages, more = CASES[name]
    (theirs,), _ = render_jinja_template(
        [json.loads(json.dumps(messages))],
        chat_template=source,
        add_generation_prompt=prompt,
        **more,
        **TOKENS,
    )
    template = ChatTemplate(source, TOKENS)
    assert render(template, messages, add_generation_prompt=prompt, **more) == theirs


def test_the_body_of_generation_is_rendered():
    source = (
        "{% for m in messages %}{% generation %}<{{ m.content }}>{% endgeneration %}{% endfor %}"
    )
    assert render(ChatTemplate(source), [USER, *TALK[1:]]) == (
        "< How is the weather in Zürich? <&> ><It rains.><Why?>"
    )


def test_text_of_any_kind_passes_unchanged():
    content = "a\ud800b\x00\u2028\U0001f600é\r\n"
    source = "{{ messages[0].content }}"
    assert render(ChatTemplate(source), [{"role": "user", "content": content}]) == content
