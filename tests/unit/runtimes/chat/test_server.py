"""A tiny GGUF in llama.cpp itself."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemquant.errors import ArtifactError, CheckpointError, UsageError
from gemquant.formats.gguf.find import find_gguf
from gemquant.models.chat import ChatTemplate, Message, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.chat.load import ChatRequest, load_chat_model, server_settings
from gemquant.runtimes.chat.server import LlamaCppChat, ServerSettings
from gemquant.runtimes.chat.session import ContextFullError
from gemquant.runtimes.sampling import Sampling
from tests.helpers.tiny_gemma import tiny_tokenizer
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf

pytestmark = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
SYSTEM: list[Message] = [{"role": "system", "content": "Be brief."}, *HELLO]
FEW = Sampling(seed=1, max_tokens=8)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    path = write_tiny_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", overrides=LLAMACPP["gemma2"]
    )
    return ServerSettings(
        path=path,
        name="tiny",
        template=VARIANTS["system-in-user"],
        context=256,
        batch=64,
        cache="f16",
        threads=1,
        gpu=False,
    )


@pytest.fixture(scope="module")
def model(settings: ServerSettings) -> LlamaCppChat:
    return LlamaCppChat(settings)


def said(
    model: LlamaCppChat, messages: list[Message] = HELLO, sampling: Sampling = FEW
) -> list[str]:
    return list(model.answer(messages, sampling, threading.Event()))


def test_an_answer_comes_in_pieces_and_ends(model: LlamaCppChat):
    pieces = said(model)
    assert 1 < len(pieces) <= 8
    assert all(pieces)


def test_the_same_seed_says_the_same_in_another_process_of_mind(settings: ServerSettings):
    answers = []
    for _ in range(2):
        model = LlamaCppChat(settings)
        answers.append(said(model))
    assert answers[0] == answers[1]


def test_another_seed_says_something_else(model: LlamaCppChat):
    assert said(model) != said(model, sampling=replace(FEW, seed=2))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("messages", [HELLO, SYSTEM], ids=["plain", "system"])
def test_the_prompt_has_bos_once(settings: ServerSettings, variant: str, messages: list[Message]):
    if variant == "stock" and messages is SYSTEM:
        pytest.skip("stock refuses the system role")
    model = LlamaCppChat(replace(settings, template=VARIANTS[variant]))
    answer = model._server.handle_chat_completions({"messages": messages, "max_tokens": 1})
    text = render(ChatTemplate(VARIANTS[variant]), messages, add_generation_prompt=True)
    ids = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    assert ids.count(2) == 1
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_template_that_can_think_does_not(settings: ServerSettings):
    thoughts = (
        "{%- if enable_thinking -%}<|think|>{%- else -%}<|channel>thought\n<channel|>{%- endif -%}"
    )
    # By these llama.cpp recognizes the published template, which can think.
    known = "{#- OpenAI Chat Completions: -#}{%- set call = '<|tool_call>call:' -%}"
    prompt = "{%- if add_generation_prompt -%}" + thoughts + "{%- endif -%}"
    source = known + VARIANTS["system"] + prompt
    model = LlamaCppChat(replace(settings, template=source))
    server, lengths = model._server, []

    def asked(request: dict[str, object], _take: object) -> None:
        answer = server.handle_chat_completions({**request, "stream": False})
        lengths.append(answer["usage"]["prompt_tokens"])

    model._server = SimpleNamespace(handle_chat_completions=asked)
    said(model)
    text = render(ChatTemplate(source), HELLO, add_generation_prompt=True)
    assert text.endswith("<|channel>thought\n<channel|>")
    assert lengths == [len(tiny_tokenizer().encode(text, add_special_tokens=False).ids)]


@pytest.mark.parametrize("cache", ["f32", "f16", "q8_0", "q4_0"])
def test_every_type_of_cache_is_run(settings: ServerSettings, cache: str):
    model = LlamaCppChat(replace(settings, cache=cache))
    assert said(model)


def test_a_stop_ends_the_answer_soon(model: LlamaCppChat):
    stop = threading.Event()
    pieces = model.answer(HELLO, Sampling(seed=1, max_tokens=200), stop)
    next(pieces)
    stop.set()
    assert len(list(pieces)) < 150
    assert said(model), "the next question is answered"


def test_a_conversation_that_does_not_fit_is_said_not_to(model: LlamaCppChat):
    with pytest.raises(ContextFullError, match="exceeds the available context size"):
        said(model, [{"role": "user", "content": "Hello " * 300}])


def test_what_the_template_refuses_is_an_error(model: LlamaCppChat):
    with pytest.raises(UsageError, match="roles must alternate"):
        said(model, [*HELLO, *HELLO])


def test_nobody_else_can_ask(model: LlamaCppChat):
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{model._server.listening_address}/v1/models", timeout=10)
    assert refusal.value.code == 401
    refusal.value.close()


def test_a_file_that_llamacpp_refuses_is_an_error(settings: ServerSettings, tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(settings.path.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match=r"llama\.cpp refuses broken\.gguf"):
        LlamaCppChat(replace(settings, path=path))


def test_a_context_beyond_the_models_is_refused(settings: ServerSettings):
    request = ChatRequest(str(settings.path), "speed", 1, context=513)
    with pytest.raises(UsageError, match="--context 513: must be from 16 to 512"):
        load_chat_model(request, HELLO)


def test_a_template_that_refuses_the_system_is_found_before_loading(settings: ServerSettings):
    request = ChatRequest(str(settings.path), "speed", 1, chat_template="stock")
    with pytest.raises(UsageError, match="system role is not supported") as refusal:
        load_chat_model(request, SYSTEM)
    assert refusal.value.hint is not None
    assert "system-in-user" in refusal.value.hint


BOMBS = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "memory": "{{ 'a' * 10**10 }}",
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_a_template_that_would_exhaust_llamacpp_is_refused_before_loading(
    settings: ServerSettings, tmp_path: Path, bomb: str
):
    file = tmp_path / "mine.jinja"
    file.write_text(f"{{% if messages | length > 1 %}}{BOMBS[bomb]}{{% endif %}}Hello")
    request = ChatRequest(str(settings.path), "speed", 1, chat_template=str(file))
    with pytest.raises(CheckpointError, match=r"would exhaust llama\.cpp"):
        server_settings(request, find_gguf(request.model), HELLO)
