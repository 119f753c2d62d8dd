"""An HTTP server in front of llama.cpp's, which trusts its clients.

It refuses what other web pages send, bounds what a request may contain and how long it may take,
and answers while llama.cpp crashes and starts again.

    client -> guard (public port) -> llama.cpp (random port and key, engine.py)
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from gemquant.errors import UsageError
from gemquant.runtimes.chat.engine import Engine
from gemquant.runtimes.chat.media import LimitError, Sense
from gemquant.runtimes.chat.request_limits import bounded_body
from gemquant.runtimes.chat.server import CLIENTS_WAITING, LOOPBACK

MAX_BODY = 8_000_000
HEADER_SECONDS = 10.0
BODY_SECONDS = 30.0
_IDLE_SECONDS = 60.0
_WRITE_SECONDS = 60.0
_MAX_HEADER = 32_768
_MAX_CONNECTIONS = 512
_MAX_PER_CLIENT = 256
_MAX_DISCARDED = 128_000_000
_PIECE = 65_536
_OPEN_PATHS = {"/", "/health", "/v1/health"}
_QUICK_PATHS = {"/health", "/v1/health", "/metrics", "/models", "/v1/models", "/props"}
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"transfer-encoding", b"upgrade", b"content-length"),
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    503: "unavailable_error",
}
_RESTARTING = "llama.cpp ended unexpectedly and is starting again; repeat the request."


@dataclass(frozen=True)
class GuardSettings:
    """Whom the guard answers.

    names: further host names under which clients may reach it. key: None for no check. context:
    tokens of a conversation. parallel: conversations at once. senses: besides text.
    """

    host: str
    port: int
    names: Collection[str]
    key: str | None
    context: int
    parallel: int
    senses: Collection[Sense] = ()


class _RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class _Request:
    method: str
    target: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def header(self, name: bytes) -> str:
        """Return a header's value; empty if absent. _RefusalError if it comes twice."""
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise _RefusalError(400, f"the header {name.decode()} comes twice.")
        return values[0].decode("latin-1").strip() if values else ""


@dataclass
class _Client:
    """A connection, and what HTTP has read and written on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER)
    )

    async def event(self) -> Any:
        """Wait for the next event of HTTP."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.reader.read(_PIECE))

    async def send(self, *events: Any) -> None:
        """Write events, and wait until the system has taken them."""
        for event in events:
            data = self.http.send(event)
            if data:
                self.writer.write(data)
        async with asyncio.timeout(_WRITE_SECONDS):
            await self.writer.drain()


class Guard:
    """Listens in a thread of its own. listening_address: a URL without a path."""

    def __init__(self, engine: Engine, settings: GuardSettings) -> None:
        self.engine = engine
        self.active = 0
        """Requests that are being answered."""
        self._settings = settings
        self._names = {settings.host.lower(), *(name.lower() for name in settings.names)}
        self._loopback = _is_loopback(settings.host)
        self._clients: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(settings.parallel + CLIENTS_WAITING // 2)
        threading.Thread(target=self._loop.run_forever, name="guard", daemon=True).start()
        try:
            self._server = self._wait_for(self._listen())
        except OSError as error:
            engine.close()
            raise UsageError(
                f"--host {settings.host} --port {settings.port}: cannot listen: "
                f"{error.strerror or error}."
            ) from None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.listening_address = f"http://{host}:{port}"

    def close(self) -> None:
        """Stop listening, and end llama.cpp."""
        self._loop.call_soon_threadsafe(self._server.close)
        self.engine.close()

    def _wait_for(self, work: Coroutine[Any, Any, asyncio.Server]) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(
            self._serve_client,
            self._settings.host,
            self._settings.port,
            backlog=512,
            limit=2 * _PIECE,
            family=socket.AF_UNSPEC if ":" in self._settings.host else socket.AF_INET,
        )

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        writer.transport.set_write_buffer_limits(high=0)
        client = _Client(reader, writer)
        self._clients[address] += 1
        try:
            if self._clients[address] > _MAX_PER_CLIENT or self._clients.total() > _MAX_CONNECTIONS:
                await _answer_error(client, 503, "too many connections; close some.")
                return
            seconds = HEADER_SECONDS
            while await self._serve_request(client, seconds):
                seconds = _IDLE_SECONDS
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.IncompleteReadError):
            pass
        finally:
            self._clients[address] -= 1
            if not self._clients[address]:
                del self._clients[address]
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()

    async def _serve_request(self, client: _Client, seconds: float) -> bool:
        """Answer one request; return whether another may follow on the connection."""
        try:
            if seconds > HEADER_SECONDS and not client.http.trailing_data[0]:
                # Between requests a client may wait longer than within one.
                async with asyncio.timeout(seconds):
                    client.http.receive_data(await client.reader.read(_PIECE))
            try:
                async with asyncio.timeout(HEADER_SECONDS):
                    event = await client.event()
            except TimeoutError:
                raise _RefusalError(408, "the header took too long.") from None
            if not isinstance(event, h11.Request):
                return False
            target = event.target.decode("latin-1")
            path = target.partition("?")[0]
            request = _Request(event.method.decode("latin-1"), target, path, list(event.headers))
            self._check_head(request)
            request.body = await _read_body(client)
            self.active += 1
            try:
                await self._forward(client, request)
            finally:
                self.active -= 1
        except _RefusalError as refusal:
            await _answer_error(client, refusal.status, refusal.message)
            return False
        except h11.RemoteProtocolError as error:
            await _answer_error(client, error.error_status_hint, f"not valid HTTP: {error}.")
            return False
        if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
            return False
        client.http.start_next_cycle()
        return True

    def _check_head(self, request: _Request) -> None:
        if request.method not in {"GET", "HEAD", "POST", "OPTIONS"}:
            raise _RefusalError(405, f"{request.method}: not a method of this server.")
        host = _host_of(f"//{request.header(b'host')}")
        if not self._is_ours(host):
            raise _RefusalError(
                403, f"Host {host or 'absent'}: not a name of this server; --allow-host adds one."
            )
        origin = request.header(b"origin")
        if origin and (not origin.startswith(("http://", "https://")) or _host_of(origin) != host):
            raise _RefusalError(403, f"Origin {origin}: pages of other hosts may not ask.")
        if request.method == "OPTIONS":
            return
        if self._settings.key is not None and request.path not in _OPEN_PATHS:
            given = request.header(b"authorization").removeprefix("Bearer ")
            given = given or request.header(b"x-api-key")
            if not hmac.compare_digest(given.encode("latin-1"), self._settings.key.encode()):
                raise _RefusalError(401, "Invalid API Key")
        if request.header(b"content-encoding") not in {"", "identity"}:
            raise _RefusalError(415, "Content-Encoding: compressed bodies are not read.")
        content_type = request.header(b"content-type").partition(";")[0].strip().lower()
        if request.method == "POST" and content_type != "application/json":
            raise _RefusalError(
                415, f"Content-Type {content_type or 'absent'}: must be application/json."
            )
        length = request.header(b"content-length")
        if length and (len(length) > 20 or int(length) > MAX_BODY):
            raise _RefusalError(413, f"the body has {length} bytes; {MAX_BODY} is the most.")

    def _is_ours(self, host: str) -> bool:
        if host in self._names or _is_loopback(host):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return not self._loopback and host == socket.gethostname().lower()
        # A page cannot give an address another meaning, as it can a name.
        return not self._loopback

    async def _forward(self, client: _Client, request: _Request) -> None:
        if request.method == "OPTIONS":
            headers = [("Allow", "GET, HEAD, POST, OPTIONS"), ("Content-Length", "0")]
            await client.send(h11.Response(status_code=200, headers=headers), h11.EndOfMessage())
            return
        if request.path == "/" and request.method in {"GET", "HEAD"}:
            address = f"http://{request.header(b'host')}/v1"
            body = json.dumps({"base_url": address, "models": f"{address}/models"}).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            data = [h11.Data(data=body)] if request.method == "GET" else []
            await client.send(
                h11.Response(status_code=200, headers=headers), *data, h11.EndOfMessage()
            )
            return
        if request.method == "POST":
            try:
                request.body = await asyncio.to_thread(
                    bounded_body, request.body, self._settings.context, self._settings.senses
                )
            except LimitError as error:
                raise _RefusalError(400, f"{error}.") from None
        work = asyncio.ensure_future(self._relay_in_turn(client, request))
        gone = asyncio.ensure_future(_until_gone(client))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError  # nobody waits for the answer
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _relay_in_turn(self, client: _Client, request: _Request) -> None:
        if request.path in _QUICK_PATHS:
            await self._relay(client, request)
        else:
            async with self._places:
                await self._relay(client, request)

    async def _relay(self, client: _Client, request: _Request) -> None:
        port = self.engine.port
        if port is None:
            raise _RefusalError(503, _RESTARTING)
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            raise _RefusalError(503, _RESTARTING) from None
        try:
            events = _exchange(reader, writer, request, self.engine.key)
            try:
                response = await anext(events)
            except (OSError, h11.RemoteProtocolError, StopAsyncIteration):
                raise _RefusalError(503, _RESTARTING) from None
            await self._relay_response(client, response, events)
        finally:
            writer.transport.abort()

    async def _relay_response(
        self, client: _Client, response: h11.Response, events: AsyncIterator[Any]
    ) -> None:
        headers = [(key, value) for key, value in response.headers if key not in _HOP_BY_HOP]
        lengths = [value for key, value in response.headers if key == b"content-length"]
        headers += [(b"content-length", value) for value in lengths]
        await client.send(h11.Response(status_code=response.status_code, headers=headers))
        try:
            async for event in events:
                await client.send(event)
        except _EngineEndedError:
            if not lengths:
                # A stream: its last event is the error, and the missing end marks the cut.
                text = f"data: {json.dumps(_error(503, _RESTARTING))}\n\n"
                await client.send(h11.Data(data=text.encode()))
            raise ConnectionResetError from None


class _EngineEndedError(Exception):
    """llama.cpp's connection ended within an answer."""


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: _Request, key: str
) -> AsyncIterator[Any]:
    """Send a request to llama.cpp; yield the response, its data, and its end."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * _PIECE)
    headers = [(b"host", LOOPBACK.encode()), (b"authorization", f"Bearer {key}".encode())]
    headers += [(b"connection", b"close")]
    headers += [pair for pair in request.headers if pair[0] in {b"accept", b"user-agent"}]
    if request.method == "POST":
        headers += [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(request.body)).encode())]
    writer.write(
        http.send(h11.Request(method=request.method, target=request.target, headers=headers)) or b""
    )
    if request.method == "POST":
        writer.write(http.send(h11.Data(data=request.body)) or b"")
    http.send(h11.EndOfMessage())
    await writer.drain()
    started = False
    while True:
        try:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_PIECE))
                continue
        except (OSError, h11.RemoteProtocolError):
            if started:
                raise _EngineEndedError from None
            raise
        if isinstance(event, h11.InformationalResponse):
            continue
        if isinstance(event, h11.ConnectionClosed):
            return
        started = True
        yield event
        if isinstance(event, h11.EndOfMessage):
            return


async def _read_body(client: _Client) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await client.event()
                if isinstance(event, h11.EndOfMessage):
                    return bytes(body)
                if not isinstance(event, h11.Data):
                    raise ConnectionResetError
                body += event.data
                if len(body) > MAX_BODY:
                    raise _RefusalError(413, f"the body is longer than {MAX_BODY} bytes.")
    except TimeoutError:
        raise _RefusalError(408, "the body took too long.") from None


async def _until_gone(client: _Client) -> None:
    """Return when the client ends the connection; keep what it sends ahead."""
    ahead = 0
    while ahead <= _MAX_HEADER:
        data = await client.reader.read(_PIECE)
        if not data:
            return
        ahead += len(data)
        client.http.receive_data(data)
    await asyncio.Event().wait()


async def _answer_error(client: _Client, status: int, message: str) -> None:
    """Answer with llama.cpp's form of an error, and close after what the client still sends."""
    if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return
    body = json.dumps(_error(status, message)).encode()
    headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *([("Retry-After", "1")] if status == 503 else []),
    ]
    response = h11.Response(status_code=status, headers=headers)
    await client.send(response, h11.Data(data=body), h11.EndOfMessage())
    # A client that is still sending would not read the answer from a connection that is reset.
    if client.writer.can_write_eof():
        client.writer.write_eof()
    discarded = 0
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(HEADER_SECONDS):
            while discarded < _MAX_DISCARDED and (data := await client.reader.read(_PIECE)):
                discarded += len(data)


def _error(status: int, message: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"code": status, "message": message, "type": kind}}


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
