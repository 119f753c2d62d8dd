"""``gemquant serve`` under hostile clients, and after a crash of llama.cpp."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from gemquant.models.chat_templates import VARIANTS
from gemquant.runtimes import llamacpp_library
from gemquant.runtimes.chat.engine import Engine
from gemquant.runtimes.chat.server import ServerSettings
from tests.helpers.tiny_gguf import LLAMACPP, write_tiny_gguf
from tests.integration.test_serve import HELLO, KEY, Server, start

pytestmark = pytest.mark.skipif(
    llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
)
CHAT = "/v1/chat/completions"
QUESTION = {"messages": HELLO, "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    running = start(write_tiny_gguf(path, overrides=LLAMACPP["gemma2"]), "--parallel", "2")
    yield running
    running.process.kill()
    running.process.communicate()


def port_of(server: Server) -> int:
    return int(server.url.split(":")[2].split("/")[0])


def ask(
    server: Server,
    body: bytes | None = None,
    path: str = CHAT,
    method: str = "POST",
    **headers: str,
) -> tuple[int, dict[str, object]]:
    """Send one request on a new connection; return status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=60)
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **given}
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def answers(server: Server) -> bool:
    return ask(server, json.dumps(QUESTION).encode())[0] == 200


NESTED = b'{"items":' * 20_000 + b"{}" + b"}" * 20_000
HOSTILE = {
    "deep schema": (
        b'{"messages": [{"role": "user", "content": "a"}], "response_format": '
        b'{"type": "json_schema", "json_schema": {"schema": ' + NESTED + b"}}}",
        400,
    ),
    "many items": (b'{"json_schema": {"type": "array", "minItems": 1000000000}}', 400),
    "repeated grammar": (b'{"grammar": "root ::= \\"a\\"{1000000000}"}', 400),
    "deep list": (b'{"a":' * 1_000_000, 400),
    "50 MB": (b'{"prompt": "' + b"a" * 50_000_000 + b'"}', 413),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_body_is_refused_quickly(server: Server, name: str) -> None:
    body, expected = HOSTILE[name]
    began = time.monotonic()
    status, document = ask(server, body)
    assert status == expected
    assert isinstance(document["error"], dict)
    assert document["error"]["message"]
    assert time.monotonic() - began < 5
    assert answers(server)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_read(server: Server, kind: str) -> None:
    assert ask(server, json.dumps(QUESTION).encode(), Content_Type=kind)[0] == 415


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.nip.io", "localhost.evil.example", ""])
def test_a_foreign_host_is_refused(server: Server, host: str) -> None:
    assert ask(server, method="GET", path="/v1/models", Host=host)[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://[::"])
def test_a_foreign_origin_is_refused(server: Server, origin: str) -> None:
    assert ask(server, json.dumps(QUESTION).encode(), Origin=origin)[0] == 403
    assert ask(server, method="OPTIONS", Origin=origin)[0] == 403


def test_this_machines_names_and_pages_are_answered(server: Server) -> None:
    port = port_of(server)
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]"):
        origin = f"http://{host}"
        assert ask(server, method="GET", path="/v1/models", Host=host, Origin=origin)[0] == 200


def test_the_root_names_the_address_for_clients(server: Server) -> None:
    host = f"localhost:{port_of(server)}"
    named = {"base_url": f"http://{host}/v1", "models": f"http://{host}/v1/models"}
    assert ask(server, path="/", method="GET", Host=host, Authorization="") == (200, named)
    assert ask(server, path="/", method="HEAD", Host=host) == (200, {})
    assert ask(server, path="/", method="GET", Host="evil.example")[0] == 403


def test_health_needs_no_key_and_everything_else_does(server: Server) -> None:
    for path, expected in (("/health", 200), ("/v1/health", 200), ("/metrics", 401), (CHAT, 401)):
        method = "POST" if path == CHAT else "GET"
        assert ask(server, b"{}", path, method, Authorization="Bearer no")[0] == expected
    assert ask(server, method="OPTIONS", Authorization="")[0] == 200
    assert ask(server, method="DELETE")[0] == 405


def test_slow_clients_leave_it_answering_and_are_let_go(server: Server) -> None:
    with ExitStack() as stack:
        slow = []
        for number in range(60):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server))))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                + (b"Content-Type: application/json\r\nContent-Length: 99\r\n" * (number % 2))
            )
            slow.append(client)
        began = time.monotonic()
        assert answers(server)
        assert time.monotonic() - began < 10
        slow[0].settimeout(30)
        assert slow[0].recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_hundred_requests_at_once_are_all_answered(server: Server) -> None:
    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(lambda _: answers(server), range(100)))


def engine_of(server: Server) -> int:
    """The process of llama.cpp: the largest child."""
    found = subprocess.run(
        ["ps", "-o", "rss=,pid=", "--ppid", str(server.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return max(tuple(map(int, line.split())) for line in found.stdout.splitlines())[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_of_the_engine_is_an_error_and_then_it_answers_again(
    server: Server, number: int
) -> None:
    assert answers(server)
    os.kill(engine_of(server), number)
    end, statuses = time.monotonic() + 60, []
    while time.monotonic() < end and (not statuses or statuses[-1] != 200):
        status, document = ask(server, json.dumps(QUESTION).encode())
        statuses.append(status)
        if status != 200:
            assert "starting again" in str(document["error"])
        time.sleep(0.1)
    assert set(statuses) == {503, 200}
    assert server.process.poll() is None


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    """Of a tiny model, for an engine without a guard."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", overrides=LLAMACPP["gemma2"])
    return ServerSettings(
        path, "tiny", VARIANTS["system-in-user"], 64, 32, "f32", 1, gpu=False, metrics=True
    )


def restarted(engine: Engine, pid: int | None) -> bool:
    """Wait until another process answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if engine.port is not None and engine.pid != pid:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_an_engine_that_hangs_is_started_again(settings: ServerSettings, path: str) -> None:
    engine = Engine(settings, longest_silence={path: 1.0})
    try:
        time.sleep(2.5)  # it answers: nothing happens
        hanging = engine.pid
        assert engine.port is not None
        assert hanging is not None
        os.kill(hanging, signal.SIGSTOP)
        assert restarted(engine, hanging)
    finally:
        engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds this size")
def test_a_request_that_takes_all_memory_ends_the_engine_or_fails(settings: ServerSettings) -> None:
    engine = Engine(settings, more_bytes=100_000_000)
    try:
        pid, held = engine.pid, resident(engine.pid)
        connection = http.client.HTTPConnection("127.0.0.1", engine.port or 0, timeout=60)
        body = {"prompt": "x", "json_schema": {"type": "array", "minItems": 3_000_000}}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {engine.key}"}
        largest = held
        with ThreadPoolExecutor(1) as pool:
            connection.request("POST", "/completion", json.dumps(body), headers)
            answer = pool.submit(connection.getresponse)
            while not answer.done():
                largest = max(largest, resident(pid))
                time.sleep(0.01)
        assert largest - held < 150_000_000
        assert answer.exception() is not None or answer.result().status >= 400
    finally:
        engine.close()


def resident(pid: int | None) -> int:
    """Bytes that a process holds in memory; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_crash_within_a_stream_is_told_in_the_stream(server: Server) -> None:
    assert answers(server)
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=60)
    body = {"messages": HELLO, "stream": True, "max_tokens": 400, "ignore_eos": True}
    connection.request(
        *("POST", CHAT, json.dumps(body)),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    os.kill(engine_of(server), signal.SIGKILL)
    with pytest.raises(http.client.IncompleteRead) as cut:
        answer.read()
    assert cut.value.partial.rstrip().endswith(b"}}")
    connection.close()


def test_an_address_that_cannot_be_had_is_named(server: Server, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", overrides=LLAMACPP["gemma2"])
    with pytest.raises(pytest.fail.Exception, match="cannot listen"):
        start(path, "--port", str(port_of(server)))
