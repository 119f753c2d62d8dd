"""Fixed conversations, letter by letter, and the same in other programs."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gemquant.errors import CalibrationError
from gemquant.models.chat import ChatTemplate, Message, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.llamacpp_library import shared_objects

SYSTEM = {"role": "system", "content": "Only reply like a pirate."}
KNOCK = [
    {"role": "user", "content": "knock knock"},
    {"role": "assistant", "content": "who is there"},
    {"role": "user", "content": "Gemma"},
]
TURNS = (
    "<start_of_turn>user\nknock knock<end_of_turn>\n"
    "<start_of_turn>model\nwho is there<end_of_turn>\n"
    "<start_of_turn>user\nGemma<end_of_turn>\n"
    "<start_of_turn>model\n"
)

# The first is the example of Gemma's documentation, alike for Gemma 1, 2 and 3; the second that for
# Gemma 3's system instructions; the last follows the template that SystemGemma2's author published.
CONVERSATIONS: dict[str, tuple[str, list[Message], str]] = {
    "stock": ("stock", KNOCK, "<bos>" + TURNS),
    "system": (
        "system",
        [SYSTEM, *KNOCK],
        "<bos><start_of_turn>system\nOnly reply like a pirate.<end_of_turn>\n" + TURNS,
    ),
    "system-in-user": (
        "system-in-user",
        [SYSTEM, {"role": "user", "content": "What is the answer to life?"}],
        (
            "<bos><start_of_turn>user\nOnly reply like a pirate.\n\nWhat is the answer to life?"
            "<end_of_turn>\n<start_of_turn>model\n"
        ),
    ),
    "systemgemma2": (
        "systemgemma2",
        [SYSTEM, *KNOCK],
        "<bos>Only reply like a pirate.\n" + TURNS,
    ),
    "system, none given": ("system", KNOCK, "<bos>" + TURNS),
    "system-in-user, none given": ("system-in-user", KNOCK, "<bos>" + TURNS),
    "systemgemma2, none given": ("systemgemma2", KNOCK, "<bos>" + TURNS),
}


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_a_conversation_is_written_as_documented(name: str):
    variant, messages, expected = CONVERSATIONS[name]
    assert render(ChatTemplate(VARIANTS[variant]), messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_transformers_writes_the_same(name: str):
    variant, messages, expected = CONVERSATIONS[name]
    (theirs,), _ = render_jinja_template(
        [messages],
        chat_template=VARIANTS[variant],
        add_generation_prompt=True,
        bos_token="<bos>",
    )
    assert theirs == expected


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_bos_is_written_once(variant: str):
    messages = KNOCK if variant == "stock" else [SYSTEM, *KNOCK]
    assert render(ChatTemplate(VARIANTS[variant]), messages).count("<bos>") == 1
    assert render(ChatTemplate(VARIANTS[variant], {"bos_token": ""}), messages).count("<bos>") == 0


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_content_in_parts_is_their_text(variant: str):
    parts = [{"type": "text", "text": "knock "}, {"type": "text", "text": "knock"}]
    whole = render(ChatTemplate(VARIANTS[variant]), KNOCK[:1])
    assert render(ChatTemplate(VARIANTS[variant]), [{"role": "user", "content": parts}]) == whole


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_part_that_is_no_text_is_refused(variant: str):
    picture = [{"type": "image", "url": "a.png"}]
    with pytest.raises(CalibrationError, match="only parts of type text"):
        render(ChatTemplate(VARIANTS[variant]), [{"role": "user", "content": picture}])


class ChatMessage(ctypes.Structure):
    """llama_chat_message."""

    _fields_: ClassVar[Any] = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


def of_llamacpp(messages: list[Message]) -> str:
    """Render with the format that llama.cpp has built in for Gemma; it writes no <bos>."""
    apply = ctypes.CDLL(str(shared_objects()[0])).llama_chat_apply_template
    apply.restype = ctypes.c_int32
    given = [ChatMessage(m["role"].encode(), m["content"].encode()) for m in messages]
    text = ctypes.create_string_buffer(4096)
    array = (ChatMessage * len(given))(*given)
    length = apply(b"gemma", array, ctypes.c_size_t(len(given)), True, text, len(text))
    return text.raw[:length].decode()


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason="xllamacpp is not installed")
@pytest.mark.parametrize("messages", [KNOCK, [SYSTEM, *KNOCK]], ids=["plain", "with system"])
def test_system_in_user_is_what_llamacpp_has_built_in(messages: list[Message]):
    template = ChatTemplate(VARIANTS["system-in-user"], {"bos_token": ""})
    ours = render(template, messages, add_generation_prompt=True)
    assert of_llamacpp(messages) == ours
