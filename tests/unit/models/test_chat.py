from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gemquant.errors import CalibrationError, CheckpointError, UsageError
from gemquant.models import chat
from gemquant.models import chat_templates as templates

TALK = [
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Good morning."},
    {"role": "user", "content": "Bye"},
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
STOCK, SYSTEM, SYSTEM_IN_USER = (
    templates.VARIANTS[name] for name in ("stock", "system", "system-in-user")
)


def test_the_stock_template_writes_gemmas_turns():
    assert chat.render(chat.ChatTemplate(STOCK), TALK, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nHello<end_of_turn>\n"
        "<start_of_turn>model\nGood morning.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_without_bos_the_text_begins_with_the_first_turn():
    assert chat.render(chat.ChatTemplate(STOCK, {"bos_token": ""}), TALK[:1]) == (
        "<start_of_turn>user\nHello<end_of_turn>\n"
    )


def test_the_system_variant_gives_the_system_a_turn():
    assert chat.render(chat.ChatTemplate(SYSTEM), WITH_SYSTEM[:2]) == (
        "<bos><start_of_turn>system\nBe brief.<end_of_turn>\n"
        "<start_of_turn>user\nHello<end_of_turn>\n"
    )


def test_system_in_user_opens_the_first_user_turn_only():
    assert chat.render(chat.ChatTemplate(SYSTEM_IN_USER), WITH_SYSTEM) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nGood morning.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
    )


def test_the_stock_template_refuses_the_system_role():
    with pytest.raises(CalibrationError, match="system role is not supported") as refusal:
        chat.render(chat.ChatTemplate(STOCK), WITH_SYSTEM)
    assert refusal.value.hint is not None
    assert "--chat-template system-in-user" in refusal.value.hint


@pytest.mark.parametrize("variant", sorted(templates.VARIANTS))
def test_roles_must_alternate(variant: str):
    with pytest.raises(CalibrationError, match=r"roles user, user: roles must alternate"):
        chat.render(chat.ChatTemplate(templates.VARIANTS[variant]), [TALK[0], TALK[2]])


@pytest.mark.parametrize("variant", sorted(templates.VARIANTS))
@pytest.mark.parametrize("prompt", [False, True], ids=["finished", "prompt"])
def test_rendering_equals_that_of_transformers(variant: str, prompt: bool):
    messages = TALK if variant == "stock" else WITH_SYSTEM
    template = templates.VARIANTS[variant]
    (theirs,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=prompt, bos_token="<bos>"
    )
    assert (
        chat.render(chat.ChatTemplate(template), messages, add_generation_prompt=prompt) == theirs
    )


def test_loop_controls_and_tojson_work_as_in_transformers():
    template = "{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
    (theirs,), _ = render_jinja_template(
        [[{"role": "user", "content": "é<"}]], chat_template=template
    )
    ours = chat.render(chat.ChatTemplate(template), [{"role": "user", "content": "é<"}])
    assert ours == theirs == '{"role": "user", "content": "é<"}'


def test_without_a_choice_the_checkpoints_template_is_used():
    assert chat.choose_template(None, "own", templates.ChatFormat()) == "own"


def test_without_any_template_the_stock_one_is_used():
    assert chat.choose_template(None, None, templates.ChatFormat()) == STOCK


def test_a_variant_is_chosen_by_name():
    assert chat.choose_template("system-in-user", "own", templates.ChatFormat()) == SYSTEM_IN_USER


def test_a_template_is_read_from_a_file(tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert (
        chat.choose_template(str(file), "own", templates.ChatFormat())
        == "{{ messages[0]['content'] }}"
    )


def test_an_unknown_name_lists_the_variants():
    with pytest.raises(
        UsageError, match="neither a file nor one of stock, system, system-in-user, systemgemma2"
    ):
        chat.choose_template("sytem", None, templates.ChatFormat())


def test_a_file_that_is_not_jinja_is_refused_with_its_line(tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text("fine\n{% if %}")
    with pytest.raises(UsageError, match=r"mine\.jinja: .* not valid Jinja: line 2"):
        chat.choose_template(str(file), None, templates.ChatFormat())


def test_an_empty_conversation_is_refused():
    with pytest.raises(CalibrationError, match="no messages"):
        chat.render(chat.ChatTemplate(STOCK), [])


HOSTILE = {
    "attributes": "{{ messages.__class__.__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "repetition": "{{ 'a' * 10 ** 9 }}",
    "power": "{{ 9 ** 999999999 }}",
    "padding": "{{ '%1000000000d' % 1 }}",
    "long range": "{% for i in range(10 ** 7) %}{% endfor %}",
    "doubling": "{% set ns = namespace(x='x') %}"
    "{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "long output": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxx"
    "{% endfor %}{% endfor %}",
    "unknown name": "{{ tools.description.text }}",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_template_ends_in_an_error(name: str):
    with pytest.raises(CheckpointError, match="chat template fails on a conversation"):
        chat.render(chat.ChatTemplate(HOSTILE[name]), TALK)


def test_an_oversized_template_is_refused():
    with pytest.raises(CheckpointError, match="more than 100000 characters"):
        chat.render(chat.ChatTemplate("x" * 100_001), TALK)
