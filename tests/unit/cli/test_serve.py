"""What ``gemquant serve`` refuses before it loads anything; the rest is in tests/integration."""

from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Run


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMQUANT_API_KEY", raising=False)


def test_everything_that_is_wrong_is_said_at_once(run: Run) -> None:
    result = run("serve", "a.gguf", "--host", "0.0.0.0", "--parallel", "0", "--threads", "0")
    assert result.code == 2
    for words in (
        "--threads 0: must be at least 1",
        "--parallel 0: must be from 1 to 64",
        "--host 0.0.0.0: other machines could connect",
        "--host 0.0.0.0: a public server needs a key",
    ):
        assert words in result.err


def test_no_option_takes_the_key_itself(run: Run) -> None:
    result = run("serve", "a.gguf", "--api-key", "in-clear-for-everyone-to-see")
    assert result.code == 2
    assert "No such option" in result.err


def test_a_model_that_is_not_there_is_named(run: Run) -> None:
    result = run("serve", "nowhere.gguf", "--port", "0")
    assert result.code == 3
    assert "nowhere.gguf: no such file or folder" in result.err
