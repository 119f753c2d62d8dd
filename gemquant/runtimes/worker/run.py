"""Starts a tool, listens to it, and ends it: when it is done, fails, takes too much, or we stop."""

from __future__ import annotations

import collections
import json
import logging
import os
import platform
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from gemquant.core.progress import Progress
from gemquant.core.resources import human_bytes
from gemquant.errors import UnsupportedError, WorkerError
from gemquant.runtimes.worker.events import (
    MAX_LINE_BYTES,
    Advanced,
    Done,
    Failed,
    Started,
    read_event,
)
from gemquant.runtimes.worker.interpreter import Interpreter
from gemquant.runtimes.worker.memory import group_memory

logger = logging.getLogger(__name__)

PROGRAMS = Path(__file__).resolve().parent / "programs"
MAX_RESULT_BYTES = 16_000_000
LINES_SHOWN = 12
LINE_SHOWN = 400
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_END = 5.0
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What a tool may take: seconds on the clock, bytes over all its processes."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Tool:
    """A foreign program. name: as its users call it. program: our file that calls it."""

    name: str
    program: Path


def run_tool(
    tool: Tool,
    job: Mapping[str, Any],
    result: type[R],
    *,
    interpreter: Interpreter,
    limits: Limits,
    folder: Path,
    threads: int,
    progress: Progress,
) -> R:
    """Run a tool to its end and return what it answered, validated.

    job: plain values for the tool's ``run``. folder: an existing scratch folder, the tool's working
    folder; the caller removes it. WorkerError, with the end of the tool's stderr, if it fails, is
    killed, says what is no event, exceeds a limit, or leaves no valid result. No process of the
    tool is alive when this returns or raises, whatever it raises.
    """
    if platform.system() == "Windows":
        raise UnsupportedError(
            f"{tool.name} is run on Linux and macOS only.", hint="Use WSL on Windows."
        )
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(json.dumps(job, allow_nan=False), encoding="utf-8")
    (folder / "tmp").mkdir(exist_ok=True)
    files = (str(PROGRAMS / "harness.py"), str(tool.program), str(job_file), str(result_file))
    command = [str(interpreter.path), "-I", "-B", "-u", *files]
    logger.info("%s: %s", tool.name, " ".join(command))
    with _started(command, folder, threads) as process:
        tail = Tail(tool.name, process.stderr)
        try:
            _listen(tool, process, limits, progress)
        except WorkerError as error:
            end(process)
            raise WorkerError(error.message + tail.shown(), hint=error.hint) from None
        end(process)
        return _validated(tool, result_file, result)


# ---------------------------------------------------------------- beginning and end


@contextmanager
def _started(command: list[str], folder: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own; end that session, whatever happens."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder / "tmp", threads),
            stdin=subprocess.PIPE,  # held open: the tool ends when we do, however we end
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerError(f"{command[0]} cannot be started: {error.strerror}.") from error
    try:
        yield process
    finally:
        end(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: asked first, then killed. Returns when all of it is gone."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    # Also where the process itself has ended: its children may live.
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # macOS answers EPERM for a group of which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _environment(temporary: Path, threads: int) -> dict[str, str]:
    """Our environment without secrets, offline, with temporary files where they are removed."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    count = str(threads)
    return kept | {
        "TMPDIR": str(temporary),
        "HF_HOME": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


# ---------------------------------------------------------------- while it runs


def _listen(
    tool: Tool, process: subprocess.Popen[bytes], limits: Limits, progress: Progress
) -> None:
    """Pass progress on until the tool has ended well; WorkerError for everything else."""
    lines = read_lines(process.stdout)
    deadline, look = time.monotonic() + limits.seconds, 0.0
    tasks: set[str] = set()
    done, open_ = False, True
    while open_ or process.poll() is None:
        try:
            line = lines.get(timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            line = b""
        if line is None:
            open_ = False
        elif line:
            done = _told(tool, line, tasks, progress) or done
        if time.monotonic() >= look:
            _keep_within(tool, process, limits, deadline)
            look = time.monotonic() + SECONDS_BETWEEN_LOOKS
    status = process.returncode
    if status < 0:
        raise WorkerError(
            f"{tool.name} was killed by {signal.Signals(-status).name}.",
            hint="The system kills what takes the last of its memory; its log would say so.",
        )
    if status != 0:
        raise WorkerError(f"{tool.name} ended with status {status} and no explanation.")
    if not done:
        raise WorkerError(f"{tool.name} ended without saying that it was done.")


def _told(tool: Tool, line: bytes, tasks: set[str], progress: Progress) -> bool:
    """Act on one line; return whether it says that all is done."""
    event = read_event(line)
    if event is None:
        shown = line[:80].decode("utf-8", "replace").strip()
        raise WorkerError(f"{tool.name} said what is no event: {shown!r}.")
    if isinstance(event, Failed):
        raise WorkerError(f"{tool.name} failed: {event.error}")
    if isinstance(event, Started):
        tasks.add(event.task)
        progress.start(event.task, event.total)
    elif isinstance(event, Advanced):
        if event.task not in tasks:
            raise WorkerError(f"{tool.name} advanced a task that had not begun: {event.task!r}.")
        progress.advance(event.task, event.amount)
    elif not isinstance(event, Done):
        progress.note(event.text)
    return isinstance(event, Done)


def _keep_within(
    tool: Tool, process: subprocess.Popen[bytes], limits: Limits, deadline: float
) -> None:
    if time.monotonic() > deadline and process.poll() is None:
        raise WorkerError(
            f"{tool.name} did not finish within {limits.seconds:g} seconds.",
            hint="Allow more with --tool-minutes.",
        )
    held = group_memory(process.pid)
    if held > limits.memory_bytes:
        raise WorkerError(
            f"{tool.name} took {human_bytes(held)} of memory; allowed were "
            f"{human_bytes(limits.memory_bytes)}.",
            hint="Allow more with --tool-memory, or use a machine that has more.",
        )


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
    """Sends stderr to the log and keeps its end."""

    def __init__(self, name: str, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._name = name
        self._stream = stream
        self._kept: collections.deque[str] = collections.deque(maxlen=LINES_SHOWN)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def shown(self) -> str:
        """Return the last lines, to append to a message; call when the process has ended."""
        self._thread.join(timeout=SECONDS_TO_END)
        lines = [f"\n    {line}" for line in tuple(self._kept)]
        return "".join(["\n  the end of its stderr:", *lines]) if lines else ""

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while line := self._stream.readline(MAX_LINE_BYTES):
                text = "".join(c for c in line.decode("utf-8", "replace") if c.isprintable())
                logger.debug("%s: %s", self._name, text)
                if text.strip():
                    self._kept.append(text[:LINE_SHOWN])


def _validated(tool: Tool, file: Path, model: type[R]) -> R:
    try:
        size = file.stat().st_size
        if size > MAX_RESULT_BYTES:
            raise WorkerError(f"{tool.name} left a result of {human_bytes(size)}: not one of ours.")
        return model.model_validate_json(file.read_bytes())
    except OSError as error:
        raise WorkerError(f"{tool.name} left no result: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']}"
            for item in error.errors(include_url=False)[:4]
        )
        raise WorkerError(f"{tool.name} left a result that is not valid: {wrong}.") from None
