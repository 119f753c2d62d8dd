from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from gemquant.errors import RuntimeMissingError
from gemquant.runtimes.worker import Interpreter


def test_our_own_interpreter_is_asked_by_default() -> None:
    found = Interpreter.ask(None, ["click", "no-such-package"])
    assert found.path == Path(sys.executable)
    assert found.python == platform.python_version()
    assert found.missing() == ["no-such-package"]
    assert found.words().startswith("click 8.")


def test_a_link_into_an_environment_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    assert Interpreter.ask(str(tmp_path / "python"), []).path == tmp_path / "python"


def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeMissingError, match="--python /nowhere/python: no such program"):
        Interpreter.ask("/nowhere/python", [])


@pytest.mark.parametrize("program", ["true", "false", "cat"])
def test_a_program_that_is_no_python_is_refused(program: str) -> None:
    with pytest.raises(RuntimeMissingError, match="does not answer like a Python"):
        Interpreter.ask(program, [])
