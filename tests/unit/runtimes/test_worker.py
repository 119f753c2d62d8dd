"""Tools are real processes here; each fault ends in one error and leaves no process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from gemquant.core.protocols import Silence
from gemquant.errors import WorkerError
from gemquant.runtimes.worker import Advanced, Interpreter, Limits, Tool, read_event, run_tool
from gemquant.runtimes.worker_process import group_memory

TOOL = Tool("faulty", Path(__file__).parents[2] / "helpers" / "worker_tools.py")
AMPLE = Limits(seconds=60, memory_bytes=2_000_000_000)


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")
    answer: int


class Heard(Silence):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def start(self, task: str, total: int) -> None:
        self.said.append(("start", task, total))

    def advance(self, task: str, amount: int = 1) -> None:
        self.said.append(("advance", task, amount))

    def note(self, text: str) -> None:
        self.said.append(("note", text))


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return Interpreter.ask(None, ["torch"])


def run(
    fault: str,
    folder: Path,
    interpreter: Interpreter,
    limits: Limits = AMPLE,
    progress: Silence | None = None,
) -> Answer:
    job = {"fault": fault, "pids": str(folder / "pids")}
    return run_tool(
        TOOL,
        job,
        Answer,
        interpreter=interpreter,
        limits=limits,
        folder=folder,
        threads=3,
        progress=progress or Silence(),
    )


def alive(pid: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def assert_all_gone(pids: Path) -> None:
    for pid in json.loads(pids.read_text()):
        deadline = time.monotonic() + 5
        while alive(pid):
            assert time.monotonic() < deadline, f"{pid} lives"
            time.sleep(0.02)


def test_a_tool_that_succeeds_answers_and_reports(tmp_path: Path, interpreter: Interpreter) -> None:
    progress = Heard()
    answer = run("none", tmp_path, interpreter, progress=progress)
    assert answer.answer == 42
    assert progress.said == [
        ("start", "working", 3),
        *[("advance", "working", 1)] * 3,
        ("note", "nearly done"),
    ]


def test_a_tool_sees_nothing_of_ours(
    tmp_path: Path, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    seen: Any = run("none", tmp_path, interpreter)
    assert not [name for name in seen.modules if name.partition(".")[0] == "gemquant"]
    assert not {"HF_TOKEN", "MY_API_KEY"} & set(seen.environment)
    assert seen.environment["OMP_NUM_THREADS"] == "3"
    assert seen.environment["HF_HUB_OFFLINE"] == "1"
    assert seen.environment["TMPDIR"] == str(tmp_path / "tmp")
    assert (seen.stdin, seen.folder) == ("", str(tmp_path))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "faulty failed: ZeroDivisionError: integer division or modulo by zero"),
        ("leave", "faulty failed: SystemExit: 3"),
        ("vanish", "faulty ended with status 5 and no explanation."),
        ("killed", "faulty was killed by SIGKILL."),
        ("invalid", "faulty left a result that is not valid: answer: Input should be a valid int"),
        ("unknown_event", """faulty wrote a line that is not an event: '{"event": "sing"}'."""),
        ("unannounced", "faulty advanced a task that it had not started: 'never begun'."),
    ],
)
def test_each_fault_has_its_message(
    tmp_path: Path, interpreter: Interpreter, fault: str, message: str
) -> None:
    with pytest.raises(WorkerError) as caught:
        run(fault, tmp_path, interpreter)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 9


def test_a_failure_shows_the_end_of_stderr(tmp_path: Path, interpreter: Interpreter) -> None:
    with pytest.raises(WorkerError) as caught:
        run("crash", tmp_path, interpreter)
    lines = caught.value.message.splitlines()
    assert lines[1:3] == ["  the end of its stderr:", "    about to divide"]
    assert lines[-1] == "    ZeroDivisionError: integer division or modulo by zero"


def test_the_end_of_stderr_is_bounded_and_printable(
    tmp_path: Path, interpreter: Interpreter, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "gemquant.runtimes"),
        pytest.raises(WorkerError) as caught,
    ):
        run("wordy", tmp_path, interpreter)
    lines = caught.value.message.splitlines()
    assert len(lines) == 2 + 12
    assert max(map(len, lines)) <= 4 + 400
    assert "\x1b" not in caught.value.message
    assert "faulty: line 0 " in caplog.text


def test_a_tool_that_hangs_is_ended_with_its_children(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match="faulty did not finish within 1 seconds"):
        run("hang", tmp_path, interpreter, Limits(1, AMPLE.memory_bytes))
    assert time.monotonic() - started < 5
    assert_all_gone(tmp_path / "pids")


def test_a_tool_that_ignores_being_asked_is_killed(
    tmp_path: Path, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemquant.runtimes.worker_process.SECONDS_TO_END", 0.3)
    with pytest.raises(WorkerError, match="did not finish"):
        run("stubborn", tmp_path, interpreter, Limits(1, AMPLE.memory_bytes))
    assert_all_gone(tmp_path / "pids")


@pytest.mark.parametrize("fault", ["greedy", "greedy_child"])
def test_a_tool_that_takes_too_much_memory_is_ended(
    tmp_path: Path, interpreter: Interpreter, fault: str
) -> None:
    with pytest.raises(WorkerError, match=r"used \d+ MB of memory; the limit is 100 MB"):
        run(fault, tmp_path, interpreter, Limits(60, 100_000_000))


def test_children_that_a_tool_leaves_behind_are_ended(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    assert run("orphan", tmp_path, interpreter).answer == 42
    assert_all_gone(tmp_path / "pids")


def test_garbage_instead_of_events_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' a\nsleep 1000\n")
    other.chmod(0o755)
    with pytest.raises(WorkerError, match="faulty wrote a line that is not an event: 'aaaa"):
        run("none", tmp_path, Interpreter(other, "3", {}))


def test_a_tool_that_says_nothing_is_not_believed(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho \'{"answer": 42}\' > "$6"\n')
    other.chmod(0o755)
    with pytest.raises(WorkerError, match="ended without reporting that it was done"):
        run("none", tmp_path, Interpreter(other, "3", {}))


def test_an_interpreter_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("not a program")
    with pytest.raises(WorkerError, match=r"python cannot be started: Permission denied"):
        run("none", tmp_path, Interpreter(other, "3", {}))


CALLER = """
import signal, sys
from pathlib import Path
from pydantic import BaseModel
from gemquant.core.protocols import Silence
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool

signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
run_tool(
    Tool("faulty", Path(sys.argv[2])),
    {"fault": "hang", "pids": str(folder / "pids")},
    BaseModel,
    interpreter=Interpreter.ask(None, []),
    limits=Limits(100, 10**10),
    folder=folder,
    threads=1,
    progress=Silence(),
)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
def test_however_we_end_no_process_stays(tmp_path: Path, ending: signal.Signals) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CALLER), str(tmp_path), str(TOOL.program)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 30
    pids: list[int] = []
    while not pids and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            pids = json.loads((tmp_path / "pids").read_text())
    assert pids
    assert all(map(alive, pids))
    caller.send_signal(ending)
    caller.wait(20)
    assert_all_gone(tmp_path / "pids")


def test_a_groups_memory_is_that_of_its_processes() -> None:
    code = "import os, sys; held = os.urandom(50_000_000); print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert 50_000_000 < group_memory(child.pid) < 100_000_000
    child.communicate()
    assert group_memory(child.pid) == 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello",
        b"{}",
        b'{"event": "start", "task": "x"}',
        b'{"event": "start", "task": "x", "total": 0}',
        b'{"event": "done", "more": 1}',
        b'{"event": "note", "text": "' + b"x" * 70_000 + b'"}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_event_is_none(line: bytes) -> None:
    assert read_event(line) is None


def test_an_event_is_read() -> None:
    event = read_event(b'{"event": "advance", "task": "x"}\n')
    assert event == Advanced(event="advance", task="x", amount=1)
