"""``gemquant serve`` as clients see it, through OpenAI's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from gemquant.models.chat import ChatTemplate, render
from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes import llamacpp_library
from tests.helpers.tiny_gemma import tiny_tokenizer
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf

pytestmark = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
KEY = "a-key-that-nobody-else-knows"
HELLO = [{"role": "user", "content": "Hello"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *HELLO]


@dataclass
class Server:
    """A running ``gemquant serve``."""

    process: subprocess.Popen[str]
    url: str
    model: str

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, object]]:
        """Send bytes as they are; return status and JSON."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read())


def start(model: Path, *options: str) -> Server:
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "gemquant", "serve", str(model), "--port", "0", "--json", "-q"],
            *["--threads", "1", *options],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GEMQUANT_API_KEY": KEY},
    )
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        if not line:
            _, error = process.communicate(timeout=30)
            pytest.fail(error)
        lines.append(line)
    described = json.loads("".join(lines))
    assert described["needs_key"] is True
    return Server(process, described["url"], described["model"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_tiny_gguf(path, overrides=LLAMACPP["gemma2"])


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    running = start(model)
    yield running
    running.process.kill()
    running.process.communicate()


def test_an_answer_has_text_and_counts(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=8, seed=1
    )
    assert answer.model == "tiny"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


@pytest.mark.parametrize("messages", [HELLO, SYSTEM], ids=["plain", "system"])
def test_the_prompt_has_bos_once_and_the_systems_words(
    server: Server, messages: list[dict[str, str]]
) -> None:
    answer = server.client().chat.completions.create(
        model=server.model, messages=messages, max_tokens=1
    )
    text = render(ChatTemplate(VARIANTS["system-in-user"]), messages, add_generation_prompt=True)
    ids = tiny_tokenizer().encode(text, add_special_tokens=False).ids
    assert ids.count(2) == 1
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_a_stream_says_what_the_whole_answer_says(server: Server) -> None:
    client = server.client()
    asked = {"model": server.model, "messages": HELLO, "max_tokens": 12, "temperature": 0}
    # Once before, so that both find the same tokens kept.
    client.chat.completions.create(**asked)
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert len(pieces) > 2
    assert whole is not None
    # A character whose last bytes have not come is held back in a stream.
    assert "".join(pieces) == whole.rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_stop_sequence_ends_the_answer_before_itself(server: Server) -> None:
    client = server.client()
    asked = {"model": server.model, "messages": HELLO, "max_tokens": 30, "temperature": 0}
    client.chat.completions.create(**asked)
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert whole is not None
    stop = whole[4:7]
    cut = client.chat.completions.create(**asked, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(stop)]


def test_the_model_is_listed_by_name_and_not_by_path(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["tiny"]


def test_a_client_without_the_key_is_refused(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        server.client("another-key-altogether").chat.completions.create(
            model=server.model, messages=HELLO
        )
    assert refusal.value.status_code == 401


BAD = {
    "no JSON": b"{nope",
    "no messages": b"{}",
    "messages empty": b'{"messages": []}',
    "messages no list": b'{"messages": "Hello"}',
    "message without content": b'{"messages": [{"role": "user"}]}',
    "top_p no number": b'{"messages": [{"role": "user", "content": "a"}], "top_p": "x"}',
    "two users in a row": b'{"messages": [{"role": "user", "content": "a"}, '
    b'{"role": "user", "content": "b"}]}',
    "more answers than allowed": b'{"messages": [{"role": "user", "content": "a"}], "n": 99}',
    "longer than the context": b'{"messages": [{"role": "user", "content": "'
    + b"word " * 2000
    + b'"}]}',
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_request_is_answered_with_its_fault(server: Server, name: str) -> None:
    status, document = server.post("/chat/completions", BAD[name])
    assert 400 <= status < 500
    error = document["error"]
    assert isinstance(error, dict)
    assert error["message"]


def test_an_unknown_path_is_not_found(server: Server) -> None:
    status, document = server.post("/nonsense", b"{}")
    assert status == 404
    assert "error" in document


def test_a_page_of_another_origin_may_not_read(server: Server) -> None:
    request = urllib.request.Request(
        f"{server.url}/models",
        headers={"Origin": "http://elsewhere.example", "Authorization": f"Bearer {KEY}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    assert refusal.value.code == 403
    assert refusal.value.headers["Access-Control-Allow-Origin"] is None
    refusal.value.close()


def test_twenty_clients_at_once_are_all_answered(server: Server) -> None:
    together = threading.Barrier(20)

    def ask(number: int) -> str:
        client = server.client()
        together.wait()
        stream = client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": f"Count to {number}"}],
            max_tokens=24,
            seed=number,
            stream=True,
        )
        reasons = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices]
        return str(reasons[-1])

    with ThreadPoolExecutor(20) as pool:
        ends = list(pool.map(ask, range(20)))
    assert set(ends) <= {"stop", "length"}
    assert len(ends) == 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_frees_its_port(model: Path, number: int) -> None:
    server = start(model)
    server.client().chat.completions.create(model=server.model, messages=HELLO, max_tokens=2)
    server.process.send_signal(number)
    out, error = server.process.communicate(timeout=20)
    assert (server.process.returncode, out, error) == (0, "", "")
    port = int(server.url.split(":")[2].split("/")[0])
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_answers_under_way_do_not_keep_it_for_ever(model: Path, signals: int) -> None:
    server = start(model, "--parallel", "2")
    ended = threading.Event()

    def keep_asking() -> None:
        client = server.client()
        while not ended.is_set():
            try:
                client.chat.completions.create(
                    model=server.model,
                    messages=HELLO,
                    max_tokens=400,
                    extra_body={"ignore_eos": True},
                )
            except openai.APIError:
                return

    threads = [threading.Thread(target=keep_asking) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    for _ in range(signals):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    server.process.communicate(timeout=30)
    seconds = time.monotonic() - began
    ended.set()
    for thread in threads:
        thread.join(30)
    assert server.process.returncode == 0
    assert seconds < (10 if signals == 1 else 3)
