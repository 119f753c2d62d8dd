"""A run that is ended in the middle leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import Kind


@pytest.mark.parametrize(
    ("ended_by", "code", "said"),
    [
        (signal.SIGTERM, 143, "terminated; nothing was left behind"),
        (signal.SIGINT, 130, "interrupted; nothing was left behind"),
    ],
)
def test_a_run_ended_by_a_signal_leaves_nothing(
    tiny_folders: dict[Kind, Path], tmp_path: Path, ended_by: int, code: int, said: str
) -> None:
    command = [sys.executable, "-m", "gemquant", "awq", str(tiny_folders["gemma2"]), "-o", "out"]
    # Long enough that the signal always arrives first.
    process = subprocess.Popen(
        [*command, "--samples", "150", "--seq-len", "512", "--threads", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have had SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.partial")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(ended_by)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (code, said)
    assert list(tmp_path.iterdir()) == []


SWALLOWS = """
import os, signal, sys, time
import click
from gemquant import __main__ as program

@click.command()
def deaf():
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(60)
    except BaseException:
        pass
    time.sleep(60)

program.cli = deaf
sys.exit(program.run())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_swallows_ends_the_run_all_the_same(name: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SWALLOWS.format(name=name)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == code
