"""Another program as a process group: its environment, output and memory, and how it ends."""

from __future__ import annotations

import collections
import logging
import os
import platform
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gemquant.core.resources import process_status
from gemquant.errors import WorkerError

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 65536
LINES_SHOWN = 12
LINE_SHOWN = 400
SECONDS_TO_END = 5.0
_PRIVATE = ("RssAnon:", "RssShmem:")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


@contextmanager
def started(
    command: list[str],
    name: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in its own session; end that session, whatever happens.

    name: for the log, to which stderr goes; a WorkerError shows the end of it.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,  # held open: the tool ends when we do, however we end
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerError(f"{command[0]} cannot be started: {error.strerror}.") from error
    tail = None if process.stderr is None else Tail(name, process.stderr)
    try:
        yield process
    except WorkerError as error:
        if tail is None:
            raise
        end(process)
        raise WorkerError(error.message + tail.shown(), hint=error.hint) from None
    finally:
        end(process)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with suppress(OSError):
                pipe.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process and its group, then kill them; return when all are gone."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    # Its children may live even if the process itself has ended.
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    # macOS returns EPERM for a group with only zombies left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def tool_environment(temporary: Path, threads: int) -> dict[str, str]:
    """Return our environment without secrets, offline, with temporary files in scratch."""
    public = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    count = str(threads)
    return public | {
        "TMPDIR": str(temporary),
        "HF_HOME": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


# ---------------------------------------------------------------- output


def read_lines(
    stream: IO[bytes] | None, *, longest: int = MAX_LINE_BYTES, held: int = 1000
) -> queue.Queue[bytes | None]:
    """Read lines in the background, of bounded length and number; None at the end."""
    assert stream is not None
    lines: queue.Queue[bytes | None] = queue.Queue(maxsize=held)

    def read() -> None:
        with suppress(OSError, ValueError):
            while line := stream.readline(longest + 1):
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


class Tail:
    """Sends stderr to the log and stores its end."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream
        self._last: collections.deque[str] = collections.deque(maxlen=LINES_SHOWN)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def shown(self) -> str:
        """Return the last lines, to append to a message; call after the process has ended."""
        self._thread.join(timeout=SECONDS_TO_END)
        lines = [f"\n    {line}" for line in tuple(self._last)]
        return "".join(["\n  the end of its stderr:", *lines]) if lines else ""

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while line := self._stream.readline(MAX_LINE_BYTES):
                text = "".join(c for c in line.decode("utf-8", "replace") if c.isprintable())
                logger.debug("%s: %s", self._name, text)
                if text.strip():
                    self._last.append(text[:LINE_SHOWN])


# ---------------------------------------------------------------- memory


def group_memory(group: int) -> int:
    """Return the bytes of memory of a process group; 0 once it is gone.

    On Linux mapped files do not count: the system can drop them at any time. Elsewhere they do.
    """
    if platform.system() == "Linux":
        return sum(process_status(pid, field) or 0 for pid in _members(group) for field in _PRIVATE)
    answer = subprocess.run(
        ["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True, check=False
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    return sum(int(row[1]) * 1024 for row in rows if len(row) == 2 and row[0] == str(group))


def _members(group: int) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        with suppress(ValueError, ProcessLookupError):  # not a process, or one that has ended
            if os.getpgid(int(process.name)) == group:
                yield int(process.name)
