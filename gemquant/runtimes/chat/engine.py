"""llama.cpp's server in a process of its own, which is started again when it crashes or hangs.

The server listens on a free port of the loopback interface with a random key, so that only this
program reaches it.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from gemquant.errors import ArtifactError, GemquantError
from gemquant.runtimes.chat.server import LOOPBACK, ServerSettings, start_server

_SECONDS_BETWEEN_STARTS = (0.0, 1.0, 5.0, 30.0)
_SECONDS_OF_STABILITY = 60.0
"""After this much time without a crash, the next start is immediate again."""

_LONGEST_SILENCE = MappingProxyType({"/health": 30.0, "/metrics": 900.0})
"""Seconds that an answer may take: of a thread of HTTP, and of the loop that computes, which first
ends its batch; that takes minutes for a large model on a slow processor."""
_SECONDS_BETWEEN_LOOKS = 5.0
_MORE_BYTES = 2 << 30
"""Memory of its own that llama.cpp may take beyond what it holds with its model loaded."""


class Engine:
    """llama.cpp's server in a child process. port: of the running server; None while it is down.

    longest_silence: path → seconds after which a process that does not answer is ended.
    more_bytes: memory that requests may take; enforced by Linux.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        longest_silence: Mapping[str, float] = _LONGEST_SILENCE,
        more_bytes: int = _MORE_BYTES,
    ) -> None:
        self.key = secrets.token_urlsafe(32)
        self.port: int | None = None
        self._settings = replace(settings, host=LOOPBACK, port=0, keys=(self.key,))
        self._more_bytes = more_bytes
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._start()
        threading.Thread(target=self._watch, name="engine watch", daemon=True).start()
        for path, seconds in longest_silence.items():
            threading.Thread(
                target=self._probe, args=(path, seconds), name=f"engine {path}", daemon=True
            ).start()

    @property
    def pid(self) -> int | None:
        """The process that runs llama.cpp."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        with self._lock:
            self.port = None
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        """Load the model in a new process; ArtifactError if llama.cpp refuses it or crashes."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with self._lock:
            if self._closed.is_set():
                return
            self._process = context.Process(
                target=_run,
                args=(self._settings, self._more_bytes, theirs),
                name="llama.cpp",
                daemon=True,
            )
            self._process.start()
        theirs.close()
        try:
            result = ours.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ArtifactError(
                f"{self._settings.path.name}: llama.cpp ended while it loaded the file "
                f"({_reason(self._process.exitcode)})."
            ) from None
        except BaseException:
            self._process.kill()
            raise
        if isinstance(result, GemquantError):
            self._process.join()
            raise result
        self._connection = ours  # the child ends when it closes
        self.port = int(result)

    def _watch(self) -> None:
        failures = 0
        while not self._closed.is_set():
            started = time.monotonic()
            self._process.join()
            self.port = None
            if time.monotonic() - started > _SECONDS_OF_STABILITY:
                failures = 0
            self._closed.wait(
                _SECONDS_BETWEEN_STARTS[min(failures, len(_SECONDS_BETWEEN_STARTS) - 1)]
            )
            failures += 1
            # A file that cannot be loaded now may be loaded later; requests are refused meanwhile.
            with suppress(GemquantError, OSError):
                self._start()

    def _probe(self, path: str, seconds: float) -> None:
        """End a process that lives and does not answer; ``_watch`` starts another."""
        while not self._closed.wait(min(seconds, _SECONDS_BETWEEN_LOOKS)):
            process, port = self._process, self.port
            if port is None:
                continue
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=seconds)
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
                connection.getresponse().read()
            except TimeoutError:
                process.kill()
            except (OSError, http.client.HTTPException):
                pass  # it has ended
            finally:
                connection.close()


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _run(settings: ServerSettings, more_bytes: int, connection: Connection) -> None:
    """In the child: serve until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        server = start_server(settings)
    except GemquantError as error:
        connection.send(error)
        os._exit(1)
    _bound_memory(more_bytes)
    connection.send(urlsplit(server.listening_address).port)
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(0)


def _bound_memory(more_bytes: int) -> None:
    """Let this process take so much more memory of its own; mapped weights do not count."""
    with suppress(ImportError, OSError):  # Windows and macOS tell and bound no such size
        import resource

        status = Path("/proc/self/status").read_text()
        held = int(status.partition("VmData:")[2].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (held + more_bytes,) * 2)
