from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gemquant.core.protocols import Silence
from gemquant.errors import UnsupportedError, UsageError
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.runtimes.chat.load import ChatRequest
from gemquant.runtimes.chat.serving import Address, address_problems, read_key, serve
from tests.helpers.tiny_artifact import write_tiny_artifact

KEY = "a-key-that-nobody-else-knows"


def complaints(host: str, *, public: bool = False, key: str | None = None, port: int = 0) -> str:
    return " | ".join(
        str(problem) for problem in address_problems(Address(host, port, public), key)
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_this_machine_may_ask_without_a_key(host: str):
    assert complaints(host) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.com", "127.0.0.1.nip.io"])
def test_an_address_that_others_reach_needs_the_flag_and_a_key(host: str):
    said = complaints(host)
    assert "other machines could connect" in said
    assert "a public server needs a key" in said


def test_the_flag_alone_is_not_enough():
    assert "a public server needs a key" in complaints("0.0.0.0", public=True)


def test_a_key_alone_is_not_enough():
    assert "Add --public to allow that" in complaints("0.0.0.0", key=KEY)


def test_the_flag_and_a_key_are_enough():
    assert complaints("0.0.0.0", public=True, key=KEY) == ""


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port {port}: cannot listen" in complaints("127.0.0.1", port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_named(port: int):
    assert "must be from 0 (any) to 65535" in complaints("127.0.0.1", port=port)


def test_without_file_and_variable_there_is_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEMQUANT_API_KEY", raising=False)
    assert read_key(None) is None


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMQUANT_API_KEY", KEY)
    assert read_key(None) == KEY


def test_a_file_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GEMQUANT_API_KEY", "the-key-of-the-environment")
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key(tmp_path / "key") == KEY


@pytest.mark.parametrize("key", ["", "short", "with spaces in its middle", "ключ-на-другом-языке"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(UsageError, match=r"at least 16 visible ASCII|cannot be read"):
        read_key(tmp_path / "key")


def test_a_missing_key_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere: cannot be read"):
        read_key(tmp_path / "nowhere")


def test_another_container_names_what_serves_it(tmp_path: Path):
    folder = write_tiny_artifact(tmp_path / "a", CompressedTensors()).path
    with pytest.raises(UnsupportedError, match="gemquant serve runs GGUF") as refusal:
        serve(
            ChatRequest(str(folder), "auto", 1),
            Address("127.0.0.1", 0, False),
            key=None,
            parallel=1,
            progress=Silence(),
        )
    assert refusal.value.hint == (
        "Make a GGUF: gemquant gguf google/gemma-2-2b --type Q4_K_M. "
        f"To serve this artifact: vllm serve {folder}"
    )
