"""``gemquant chat`` on a tiny GGUF, typed and piped."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemquant.runtimes import llamacpp_library
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
FEW = ("--max-tokens", "6", "--seed", "1", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return str(write_tiny_gguf(path, overrides=LLAMACPP["gemma2"]))


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Type lines at the prompt; an exception's type stands for a key such as Ctrl-C."""
    waiting: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def read(prompt: str = "") -> str:
        line = next(waiting)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)


def test_a_piped_question_is_answered_once(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, "Hello")
    first = run("chat", model, *FEW)
    pipe(monkeypatch, "Hello")
    second = run("chat", model, *FEW, "-q")
    assert first.code == second.code == 0
    assert len(first.out) > 1
    assert first.out == second.out
    assert second.err == ""


def test_what_was_chosen_is_said_on_stderr(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, "Hello")
    result = run("chat", model, *FEW)
    assert "context 512" in result.err
    assert "preset speed (auto: 870 kB of weights and" in result.err


def test_a_model_without_a_chat_template_is_cautioned_about(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, "Hello")
    assert f"caution: {model} has no chat template: a base model" in run("chat", model, *FEW).err
    pipe(monkeypatch, "Hello")
    assert "caution" not in run("chat", model, *FEW, "--chat-template", "stock").err


def test_json_holds_the_answer(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "Hello")
    plain = run("chat", model, *FEW)
    pipe(monkeypatch, "Hello")
    assert json.loads(run("chat", model, *FEW, "--json").out)["answer"] == plain.out[:-1]


def test_a_system_message_changes_the_answer(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, "Hello")
    plain = run("chat", model, *FEW)
    pipe(monkeypatch, "Hello")
    assert run("chat", model, *FEW, "--system", "Be brief.").out != plain.out


def test_an_empty_pipe_is_refused(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, " \n")
    result = run("chat", model)
    assert result.code == 2
    assert "standard input holds no question" in result.err


def test_everything_that_is_wrong_is_said_at_once(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, "Hello")
    result = run("chat", model, "--temperature", "-1", "--top-p", "x", "--threads", "0")
    assert result.code == 2
    for words in ("--temperature -1.0", "--top-p: 'x' is not", "--threads 0"):
        assert words in result.err


def test_typed_questions_are_answered_until_the_end(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hello", "", "!new", "Hello")
    result = run("chat", model, *FEW)
    assert result.code == 0
    assert "New conversation." in result.err
    assert len(result.out) > 4


def test_help_lists_what_can_be_typed(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "!help", "!nonsense", "!quit", "never read")
    result = run("chat", model, *FEW)
    assert "!new    start a new conversation" in result.out
    assert "!nonsense: no such command" in result.err


def test_ctrl_c_at_the_prompt_does_not_leave(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, KeyboardInterrupt, "!help")
    result = run("chat", model, *FEW)
    assert "Type !quit or press Ctrl-D to leave." in result.err
    assert "!new" in result.out


def test_a_conversation_that_is_full_goes_on_with_another(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hello " * 100, "!new", "Hi")
    result = run("chat", model, *FEW, "--context", "64")
    assert result.code == 0
    assert "Type !new to start another conversation" in result.err


def test_json_needs_a_pipe(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch)
    assert run("chat", model, "--json").code == 2


def test_a_model_that_is_not_there_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(monkeypatch, "Hello")
    result = run("chat", "nowhere.gguf")
    assert result.code == 3
    assert "nowhere.gguf: no such file or folder" in result.err
