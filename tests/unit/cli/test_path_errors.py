"""What a path alone shows is said before anything slow is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import Kind

ARTIFACT = "error: nothere: no such file or folder.\n"
SUBJECT = "error: nothere: neither a folder nor a file.\n"
PROGRAM = """
import sys
from gemquant.__main__ import main
code = main(sys.argv[1:])
print(code, *(name for name in ("torch", "transformers", "pydantic") if name in sys.modules))
"""


def said(*command: str, cwd: Path | None = None) -> tuple[str, str]:
    """Exit code and slow modules that were imported; the error."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("show nothere", ARTIFACT),
        ("eval nothere", ARTIFACT),
        ("verify nothere", ARTIFACT),
        ("card nothere", ARTIFACT),
        ("push nothere me/x", ARTIFACT),
        ("bench nothere", SUBJECT),
    ],
)
def test_a_path_to_nothing_costs_no_slow_import(command: str, error: str) -> None:
    out, err = said(*command.split())
    assert out == "6"
    assert error in err


def test_a_mistyped_adapter_costs_no_torch(tiny_folders: dict[Kind, Path]) -> None:
    out, err = said("rtn", str(tiny_folders["gemma2"]), "--lora", "./typo=0.5")
    assert out.startswith("3")
    assert "torch" not in out
    assert err == (
        "error: --lora ./typo: no such folder.\n"
        "  hint: Give an adapter's folder or Hub id, as peft or mlx-lm saves it.\n"
    )


def test_a_mistyped_model_costs_no_torch_in_the_simulator() -> None:
    out, err = said("rknn-sim", "./typo")
    assert out == "3"
    assert "error: ./typo: no such file or folder.\n" in err
