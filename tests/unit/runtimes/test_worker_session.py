"""A tool that stays loaded: it answers, fails once and for all, and ends with its session."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemquant.errors import WorkerError
from gemquant.runtimes.worker import Interpreter, Session, Tool

TOOL = Tool("oracle", Path(__file__).parents[2] / "helpers" / "answering_tool.py")


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return Interpreter.ask(None, [])


def opened(interpreter: Interpreter, seconds: float = 60.0) -> Session:
    return Session(TOOL, {"a": 1}, interpreter=interpreter, threads=1, seconds=seconds)


def all_end(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_requests_are_answered_in_order(interpreter: Interpreter) -> None:
    session = opened(interpreter)
    assert session.ready["a"] == 1
    assert session.ask(do="echo", ids=[1, 2]) == {"do": "echo", "ids": [1, 2]}
    session.ask(do="write", length=100_000)
    assert (session.folder / "long").stat().st_size == 100_000


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("fail", "oracle failed: ValueError: no such token."),
        ("vanish", "oracle ended without an answer."),
        ("wait", "oracle did not answer within 5 seconds."),
    ],
)
def test_a_fault_ends_the_tool_and_its_children(
    fault: str, said: str, interpreter: Interpreter
) -> None:
    session = opened(interpreter, seconds=5)
    with pytest.raises(WorkerError) as caught:
        session.ask(do=fault)
    assert caught.value.message.startswith(said)
    assert ("Traceback" in caught.value.message) == (fault == "fail")
    assert all_end(session.ready["pids"])


def test_the_tool_ends_with_its_session(interpreter: Interpreter) -> None:
    session = opened(interpreter)
    pids, folder = session.ready["pids"], session.folder
    del session
    gc.collect()
    assert all_end(pids)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_tool_ends_with_our_process(number: signal.Signals) -> None:
    program = f"""
import sys, time
from pathlib import Path
from gemquant.runtimes.worker import Interpreter, Session, Tool
tool = Tool("oracle", Path({str(TOOL.program)!r}))
session = Session(tool, {{}}, interpreter=Interpreter.ask(None, []), threads=1, seconds=60)
print(*session.ready["pids"], flush=True)
time.sleep(1000)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        os.kill(process.pid, number)
    assert len(pids) == 2
    assert all_end(pids)
