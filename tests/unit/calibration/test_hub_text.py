from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from gemquant.calibration.documents import Conversation, Plain, read_hub_dataset
from gemquant.errors import CalibrationError, RuntimeMissingError, UsageError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Installs a stand-in for the datasets package with a given load_dataset."""

    def install(load: Callable[..., Any]) -> None:
        module = ModuleType("datasets")
        module.load_dataset = load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)

    return install


def test_split_and_column_are_passed_on(hub):
    asked = []

    def load(name: str, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, split, streaming))
        return [{"story": "once"}, {"story": " "}, {"story": "upon"}]

    hub(load)
    assert read_hub_dataset("hf:a/b:test:story") == [Plain("once"), Plain("upon")]
    assert asked == [("a/b", "test", True)]


def test_the_default_is_the_text_of_the_train_split(hub):
    hub(lambda name, *, split, streaming: [{"text": f"{name} {split}"}])
    assert read_hub_dataset("hf:b") == [Plain("b train")]


def test_a_column_of_messages_gives_conversations(hub):
    hub(lambda *_, **__: [{"messages": [{"role": "user", "content": "hi"}]}])
    assert read_hub_dataset("hf:a/b") == [Conversation(({"role": "user", "content": "hi"},))]


def test_an_unknown_column_lists_the_columns(hub):
    hub(lambda *_, **__: [{"question": "?", "answer": "!"}])
    with pytest.raises(CalibrationError, match="no column text; there are question, answer"):
        read_hub_dataset("hf:a/b")


def test_an_unreachable_hub_is_a_clear_error(hub):
    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\n  the Hub")

    hub(load)
    with pytest.raises(CalibrationError, match="cannot be read from the Hub: Couldn't reach the"):
        read_hub_dataset("hf:a/b")


def test_without_the_package_the_command_to_install_it_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeMissingError) as raised:
        read_hub_dataset("hf:a/b")
    assert raised.value.hint == "pip install 'datasets>=4'"
    assert raised.value.exit_code == 8


@pytest.mark.parametrize("source", ["hf:", "hf:a/b:", "hf:a/b:train:text:more"])
def test_a_malformed_source_is_a_usage_error(source: str):
    with pytest.raises(UsageError, match="not of the form hf:DATASET"):
        read_hub_dataset(source)
