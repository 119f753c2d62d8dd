"""Untrusted Jinja templates, rendered in a process of their own that has hard limits.

A template may ask for any amount of memory or time, also while jinja2 compiles it and folds its
constants; only the operating system can bound that. The process is started at the first use,
renders many conversations, and ends when it is idle, at a violation, or with this program.

    kernel        memory (RLIMIT_AS), processor time of each rendering (RLIMIT_CPU)
    this program  the clock; resident memory, where the kernel has no limit (macOS, Windows)
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gemquant.errors import RuntimeMissingError
from gemquant.models import template_child as child

Kind = Literal["chat", "probe", "task"]


@dataclass(frozen=True)
class Limits:
    """What one rendering may take, compilation included.

    cpu_seconds: the kernel rounds up by as much as a second. longest: characters of the result.
    """

    memory_bytes: int = 256 * 2**20
    cpu_seconds: int = 3
    seconds: float = 20.0
    longest: int = 4_000_000


LIMITS = Limits()
_MOST_TEMPLATES = 500
"""Compiled templates in one process; a further one starts another."""
_SECONDS_TO_START = 60.0
_SECONDS_IDLE = 5.0
_SECONDS_BETWEEN_LOOKS = 0.02
_PROGRAM = (
    "import sys; sys.path += sys.argv[5:]; import template_child; "
    "template_child.main(sys.argv[1], *map(int, sys.argv[2:5]))"
)
_VARIABLES = ("TZ", "TZDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables of the environment that are passed on: the time zone, and what Python may need."""


class RenderingError(Exception):
    """A template made no text. The message is a clause without a full stop."""


class RefusedError(RenderingError):
    """The template called raise_exception."""


class InvalidError(RenderingError):
    """The template is not valid Jinja."""


class ExhaustedError(RenderingError):
    """A limit was reached: memory, time, length or depth."""


_ERRORS: Mapping[bytes, type[RenderingError]] = {
    child.REFUSED: RefusedError,
    child.INVALID: InvalidError,
    child.FAILED: RenderingError,
    child.EXHAUSTED: ExhaustedError,
}


class Renderer:
    """Renders templates of one kind in a process that is started when needed."""

    def __init__(self, kind: Kind, limits: Limits = LIMITS) -> None:
        self._kind, self._limits = kind, limits
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def render(self, source: str, values: Mapping[str, Any] | None) -> str:
        """Render a template; only compile it where values is None.

        values: of JSON's types; anything else becomes text. Raises RenderingError,
        RuntimeMissingError where no process can be started.
        """
        with self._lock:
            process = self._process
            if process is None or not process.takes(source):
                self._end()
                process = self._process = _Process(self._kind, self._limits, self._lock)
            try:
                return process.render(source, values)
            finally:
                if not process.idle:
                    self._end()

    def close(self) -> None:
        """End the process, if there is one; the next rendering starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


@cache
def shared_renderer(kind: Kind) -> Renderer:
    """The renderer that all of this program uses for templates of a kind."""
    renderer = Renderer(kind)
    atexit.register(renderer.close)
    return renderer


class _Process:
    """A child process, its pipes, and the thread that watches it. Not safe for several threads."""

    def __init__(self, kind: Kind, limits: Limits, lock: threading.Lock) -> None:
        self._limits, self._lock, self._owner = limits, lock, os.getpid()
        self._numbers: dict[str, int] = {}
        self._violation = ""
        self._ended = threading.Event()
        self._deadline: float | None = time.monotonic() + _SECONDS_TO_START
        self._used = 0.0
        figures = (limits.memory_bytes, limits.cpu_seconds, limits.longest)
        command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _PROGRAM, kind]
        try:
            self._popen = subprocess.Popen(
                [*command, *map(str, figures), *_import_folders()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C reaches this program only
            )
        except OSError as error:
            raise RuntimeMissingError(
                f"{sys.executable}: cannot be started to render a template: {error.strerror}."
            ) from None
        self._watcher = threading.Thread(target=self._watch, name="template watch", daemon=True)
        self._watcher.start()
        try:
            self._read(child.LENGTH_BYTES)  # STARTED
        except EOFError:
            self.end()
            raise RuntimeMissingError(
                "the process that renders templates does not start.",
                hint=f"Try: {sys.executable} -I -c 'import jinja2.sandbox'",
            ) from None
        except BaseException:
            self.end()
            raise
        self._rest()

    @property
    def idle(self) -> bool:
        """Whether the process waits for a request; False after any violation or interruption."""
        return self._deadline is None and not self._ended.is_set()

    def takes(self, source: str) -> bool:
        """Whether the process is alive, and ours, and has room for one more template."""
        known = source in self._numbers or len(self._numbers) < _MOST_TEMPLATES
        alive = self._owner == os.getpid() and self.idle and self._popen.poll() is None
        return alive and known

    def render(self, source: str, values: Mapping[str, Any] | None) -> str:
        request: dict[str, Any] = {"values": values}
        number = self._numbers.get(source)
        if number is None:
            request |= {"template": len(self._numbers), "source": source}
        else:
            request["template"] = number
        try:
            content = json.dumps(request, ensure_ascii=False, default=_plain)
        except (ValueError, RecursionError) as error:
            raise RenderingError(f"a value cannot be passed to it: {error}") from None
        encoded = content.encode("utf-8", "surrogatepass")
        if len(encoded) > self._limits.memory_bytes // 8:
            raise RenderingError(f"{len(encoded)} bytes of values are too many for it")
        self._deadline = time.monotonic() + self._limits.seconds
        reply = self._exchange(encoded)
        outcome, text = reply[:1], reply[1:].decode("utf-8", "surrogatepass")
        if outcome != child.EXHAUSTED:
            self._rest()
        if outcome in {child.RENDERED, child.REFUSED}:  # it is compiled
            self._numbers.setdefault(source, len(self._numbers))
        if outcome == child.RENDERED:
            return text
        if (outcome, text) == (child.EXHAUSTED, child.MEMORY):
            text = self._too_much_memory
        raise _ERRORS.get(outcome, RenderingError)(text)

    def end(self) -> None:
        """Kill the process and wait for it; close the pipes."""
        self._ended.set()
        if self._owner == os.getpid():
            self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    # ------------------------------------------------------------ pipes

    def _exchange(self, request: bytes) -> bytes:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(len(request).to_bytes(child.LENGTH_BYTES, "big") + request)
            self._popen.stdin.flush()
            size = int.from_bytes(self._read(child.LENGTH_BYTES), "big")
            if 1 <= size <= 4 * self._limits.longest + 1:
                return self._read(size)
        except (OSError, EOFError):
            pass  # the process is gone
        self.end()
        raise ExhaustedError(self._violation or self._cause())

    def _read(self, size: int) -> bytes:
        assert self._popen.stdout is not None
        content = self._popen.stdout.read(size)
        if len(content) != size:
            raise EOFError
        return content

    def _rest(self) -> None:
        self._used, self._deadline = time.monotonic(), None

    # ------------------------------------------------------------ limits

    def _watch(self) -> None:
        """Kill the process at a violation; end it when it has been idle."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            deadline, clock = self._deadline, time.monotonic()
            if deadline is None:
                if clock - self._used > _SECONDS_IDLE and self._lock.acquire(blocking=False):
                    try:
                        if self.idle:
                            self.end()
                    finally:
                        self._lock.release()
            elif clock > deadline:
                self._kill(f"it takes more than {self._limits.seconds:g} s")
            elif resident_bytes(self._popen) > self._limits.memory_bytes:
                self._kill(self._too_much_memory)

    def _kill(self, violation: str) -> None:
        self._violation = violation
        self._ended.set()
        self._popen.kill()

    @property
    def _too_much_memory(self) -> str:
        return f"it needs more than {self._limits.memory_bytes >> 20} MiB of memory"

    def _cause(self) -> str:
        """Why the process ended before its answer."""
        status = self._popen.returncode
        if status >= 0:
            return f"its process ended with status {status}"
        if os.name == "posix" and -status == signal.SIGXCPU:
            return f"it takes more than {self._limits.cpu_seconds} s of processor time"
        return f"its process was ended by {signal.Signals(-status).name}"


def _import_folders() -> list[str]:
    """Folders that hold the program, jinja2 and markupsafe: all that ``python -I -S`` lacks."""
    folders = [str(Path(child.__file__).parent)]
    for package in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


def _plain(value: Any) -> Any:
    """A value of numpy as Python's own; any other that JSON lacks as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Physical memory that a process holds; 0 where it is gone or the system does not say."""
    system = platform.system()
    try:
        if system == "Linux":
            pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        if system == "Darwin":
            # proc_pidinfo(PROC_PIDTASKINFO): struct proc_taskinfo, resident size second.
            figures = (ctypes.c_uint64 * 12)()
            size = ctypes.sizeof(figures)
            ctypes.CDLL(None).proc_pidinfo(process.pid, 4, ctypes.c_uint64(0), figures, size)
            return int(figures[1])
        if system == "Windows":
            # PROCESS_MEMORY_COUNTERS: two 32-bit numbers, then the peak, then the working set.
            counters = (ctypes.c_size_t * 9)()
            size = ctypes.sizeof(counters)
            handle = ctypes.c_void_p(int(getattr(process, "_handle")))  # noqa: B009 - Windows only
            kernel = getattr(ctypes, "windll").kernel32  # noqa: B009
            kernel.K32GetProcessMemoryInfo(handle, counters, size)
            return int(counters[2])
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return 0
