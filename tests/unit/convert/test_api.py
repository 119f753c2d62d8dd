"""``import gemquant``: the examples of docs/python.md run, and errors name what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gemquant
from tests.helpers.tiny_gemma import write_tiny_gemma

PAGE = Path(__file__).parents[3] / "docs/python.md"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tiny_gemma(tmp_path / "my-gemma", "gemma3_text")


def test_the_examples_of_the_documentation_run(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)
    made = names["made"]
    assert isinstance(made, list)
    assert [each.path.name for each in made] == [
        "my-gemma-rtn-w4-g32",
        "my-gemma-rtn-w4-g64",
        "my-gemma-nf4-g64",
    ]
    assert "no such option: group_sise." in capsys.readouterr().out
    assert {path.name for path in model.parent.iterdir()} == {
        "my-gemma",
        "my-gemma-awq-w4-g32",
        "several",
    }


def test_a_second_call_returns_what_stands(model: Path) -> None:
    def call() -> gemquant.Artifact:
        return gemquant.quantize(model, "rtn", output="out/x", eval_windows=0, progress=False)

    first = call()
    written = (first.path / "model.safetensors").stat().st_mtime_ns
    assert call() == first
    assert (first.path / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": [32, 64]}, "quantize: 2 artifacts for one call."),
        ({"bits": 9}, "--bits 9"),
        ({"target": "moon"}, "moon"),
    ],
)
def test_a_wrong_call_raises_a_gemquant_error(
    model: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(gemquant.GemquantError, match=re.escape(message)):
        gemquant.quantize(model, "rtn", progress=False, **settings)  # type: ignore[arg-type]


def test_importing_is_quick_and_lists_the_public_names() -> None:
    program = (
        "import sys, gemquant; assert 'torch' not in sys.modules and 'click' not in sys.modules; "
        "print(sorted(gemquant.__all__) == sorted(set(dir(gemquant)) - {'__version__'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"True\n"


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in gemquant.__all__ if getattr(gemquant, name) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = gemquant.quantise  # type: ignore[attr-defined]
