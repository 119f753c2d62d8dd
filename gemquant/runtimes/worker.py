"""External tools with their own pinned versions, run under another interpreter.

Nothing of them is imported here. The tool reads its job from a JSON file; it writes JSON lines of
progress to stdout and its result to a JSON file. Its time and memory are limited, and no process of
it outlives the call. A tool of a ``Session`` stays, and answers requests.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from gemquant.core.json_document import Record
from gemquant.core.protocols import Progress
from gemquant.core.resources import human_bytes
from gemquant.core.untrusted import UntrustedFile, user_path
from gemquant.errors import RuntimeMissingError, UnsupportedError, WorkerError
from gemquant.runtimes.worker_process import (
    MAX_LINE_BYTES,
    group_memory,
    read_lines,
    started,
    tool_environment,
)

logger = logging.getLogger(__name__)

PROGRAMS = Path(__file__).resolve().parent / "programs"
RESULT = "result.json"
MAX_RESULT_BYTES = 16_000_000
SECONDS_BETWEEN_CHECKS = 0.1

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds, and bytes over all processes of a tool."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Tool:
    """An external tool. name: as its users call it. program: our file that calls it."""

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
    """Run a tool to its end and return its validated result.

    job: plain values for the tool's ``run``. folder: an existing scratch folder, the tool's working
    folder; the caller removes it. WorkerError, with the end of the tool's stderr, if it fails, is
    killed, writes something that is not an event, exceeds a limit, or leaves no valid result. No
    process of the tool is alive when this returns or raises.
    """
    with _started(tool, job, interpreter=interpreter, folder=folder, threads=threads) as process:
        _listen(tool, process, limits, progress)
    label = f"{tool.name} left a result that is not valid"
    result_file = UntrustedFile(folder / RESULT, MAX_RESULT_BYTES, WorkerError, label=label)
    return result_file.record(result)


def _started(
    tool: Tool, job: Mapping[str, Any], *, interpreter: Interpreter, folder: Path, threads: int
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    if platform.system() == "Windows":
        raise UnsupportedError(
            f"{tool.name} runs on Linux and macOS only.", hint="Use WSL on Windows."
        )
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job, allow_nan=False), encoding="utf-8")
    (folder / "tmp").mkdir(exist_ok=True)
    files = (str(PROGRAMS / "harness.py"), str(tool.program), str(job_file), str(folder / RESULT))
    command = [str(interpreter.path), "-I", "-B", "-u", *files]
    logger.info("%s: %s", tool.name, " ".join(command))
    environment = tool_environment(folder / "tmp", threads)
    return started(command, tool.name, folder=folder, environment=environment)


class Session:
    """A tool that stays loaded and answers one request after the other.

    folder: scratch, for answers that are too long for a line. ready: the first answer, which comes
    when the tool is loaded. The process ends with this object or with ours, however that ends.
    WorkerError, with the end of the tool's stderr, if it fails, is killed, or takes longer than
    ``seconds`` for an answer.
    """

    def __init__(
        self,
        tool: Tool,
        job: Mapping[str, Any],
        *,
        interpreter: Interpreter,
        threads: int,
        seconds: float,
    ) -> None:
        self._tool, self._seconds, self._stack = tool, seconds, ExitStack()
        weakref.finalize(self, self._stack.close)
        temporary = tempfile.TemporaryDirectory(prefix="gemquant-")
        self.folder = Path(self._stack.enter_context(temporary))
        self._process = self._stack.enter_context(
            _started(tool, job, interpreter=interpreter, folder=self.folder, threads=threads)
        )
        self.pid, self._lines = self._process.pid, read_lines(self._process.stdout)
        self.ready = self._answer()

    def ask(self, **request: Any) -> Mapping[str, Any]:
        """Return the answer to a request of plain values."""
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has ended; what it said last tells why
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        try:
            line = self._lines.get(timeout=self._seconds)
        except queue.Empty:
            line = None
            problem = f"did not answer within {self._seconds:g} seconds"
        else:
            problem = "ended without an answer"
        event = None if line is None else read_event(line)
        if isinstance(event, Answered):
            return event.answer
        if isinstance(event, Failed):
            problem = f"failed: {event.error}"
        error = WorkerError(f"{self._tool.name} {problem}.")
        self._stack.__exit__(WorkerError, error, None)  # which adds the end of stderr
        raise error


# ---------------------------------------------------------------- while it runs


def _listen(
    tool: Tool, process: subprocess.Popen[bytes], limits: Limits, progress: Progress
) -> None:
    """Report progress until the tool has succeeded; WorkerError for everything else."""
    lines = read_lines(process.stdout)
    deadline, next_check = time.monotonic() + limits.seconds, 0.0
    tasks: set[str] = set()
    done, open_ = False, True
    while open_ or process.poll() is None:
        try:
            line = lines.get(timeout=SECONDS_BETWEEN_CHECKS)
        except queue.Empty:
            line = b""
        if line is None:
            open_ = False
        elif line:
            done = _handle(tool, line, tasks, progress) or done
        if time.monotonic() >= next_check:
            _check_limits(tool, process, limits, deadline)
            next_check = time.monotonic() + SECONDS_BETWEEN_CHECKS
    status = process.returncode
    if status < 0:
        raise WorkerError(
            f"{tool.name} was killed by {signal.Signals(-status).name}.",
            hint="The system may have run out of memory; its log would show it.",
        )
    if status != 0:
        raise WorkerError(f"{tool.name} ended with status {status} and no explanation.")
    if not done:
        raise WorkerError(f"{tool.name} ended without reporting that it was done.")


def _handle(tool: Tool, line: bytes, tasks: set[str], progress: Progress) -> bool:
    """Handle one line; return whether it reports the end."""
    event = read_event(line)
    if event is None:
        shown = line[:80].decode("utf-8", "replace").strip()
        raise WorkerError(f"{tool.name} wrote a line that is not an event: {shown!r}.")
    if isinstance(event, Failed):
        raise WorkerError(f"{tool.name} failed: {event.error}")
    if isinstance(event, Started):
        tasks.add(event.task)
        progress.start(event.task, event.total)
    elif isinstance(event, Advanced):
        if event.task not in tasks:
            raise WorkerError(
                f"{tool.name} advanced a task that it had not started: {event.task!r}."
            )
        progress.advance(event.task, event.amount)
    elif isinstance(event, Noted):
        progress.note(event.text)
    return isinstance(event, Done)


def _check_limits(
    tool: Tool, process: subprocess.Popen[bytes], limits: Limits, deadline: float
) -> None:
    if time.monotonic() > deadline and process.poll() is None:
        raise WorkerError(
            f"{tool.name} did not finish within {limits.seconds:g} seconds.",
            hint="Allow more with --tool-minutes.",
        )
    memory = group_memory(process.pid)
    if memory > limits.memory_bytes:
        raise WorkerError(
            f"{tool.name} used {human_bytes(memory)} of memory; the limit is "
            f"{human_bytes(limits.memory_bytes)}.",
            hint="Allow more with --tool-memory, or use a machine that has more.",
        )


# ---------------------------------------------------------------- events


class Started(Record):
    """A task of ``total`` steps starts."""

    event: Literal["start"]
    task: Annotated[str, Field(max_length=200)]
    total: Annotated[int, Field(ge=1, le=10**9)]


class Advanced(Record):
    """Some steps of a started task are done."""

    event: Literal["advance"]
    task: Annotated[str, Field(max_length=200)]
    amount: Annotated[int, Field(ge=0, le=10**9)] = 1


class Noted(Record):
    """A line for the user."""

    event: Literal["note"]
    text: Annotated[str, Field(max_length=2000)]


class Answered(Record):
    """The answer to a request."""

    event: Literal["answer"]
    answer: dict[str, Any]


class Failed(Record):
    """The tool failed, and why."""

    event: Literal["failed"]
    error: Annotated[str, Field(max_length=4000)]


class Done(Record):
    """The result file is complete."""

    event: Literal["done"]


Event = Started | Advanced | Noted | Answered | Failed | Done

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_event(line: bytes) -> Event | None:
    """Return the event of a line, or None if the line is not one."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None


# ---------------------------------------------------------------- its interpreter


_SECONDS_TO_ANSWER = 60
_QUESTION = """\
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
json.dump({"python": "%d.%d.%d" % sys.version_info[:3],
           "packages": {name: version(name) for name in sys.argv[1:]}}, sys.stdout)
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter. packages: requested packages and their versions, None if missing."""

    path: Path
    python: str
    packages: Mapping[str, str | None]

    @classmethod
    def ask(cls, python: str | None, packages: Sequence[str], *, flag: str = "--python") -> Self:
        """Ask an interpreter for versions, without importing the packages.

        python: path or name; None for our own. flag: what named it. RuntimeMissingError if it does
        not answer.
        """
        # An absolute path with its links: a virtual environment's Python is one.
        program = sys.executable if python is None else shutil.which(user_path(python))
        if program is None:
            raise RuntimeMissingError(
                f"{flag} {python}: no such program.",
                hint=f"Name the Python of an environment, as in {flag} ./tool-venv/bin/python",
            )
        try:
            answer = subprocess.run(
                [program, "-I", "-c", _QUESTION, *packages],
                capture_output=True,
                text=True,
                check=True,
                timeout=_SECONDS_TO_ANSWER,
                stdin=subprocess.DEVNULL,
            )
            facts = json.loads(answer.stdout)
            path = Path(os.path.abspath(program))  # noqa: PTH100 (resolve() would leave the venv)
            return cls(path, str(facts["python"]), dict(facts["packages"]))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            raise RuntimeMissingError(
                f"{flag} {program}: does not answer like a Python ({type(error).__name__}).",
                hint=f"Try: {program} --version",
            ) from None

    def missing(self) -> list[str]:
        """Names of the packages that are not installed in it."""
        return [name for name, version in self.packages.items() if version is None]

    def words(self) -> str:
        """Versions, for a manifest: ``autoawq 0.2.9, torch 2.13.0``."""
        return ", ".join(f"{n} {v.partition('+')[0]}" for n, v in self.packages.items() if v)
