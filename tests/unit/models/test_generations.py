"""``ci/generations``: only ``gemquant/models`` names a generation."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "ci" / "generations"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("generations", str(SCRIPT))
    spec = importlib.util.spec_from_loader("generations", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_no_generation_is_named_outside_models(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (check.main(), capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        'is_old = config["model_type"] == "gemma2"',
        'LAYERS = {"gemma3_text": 62}',
        'architecture = "gemma3"',
        'classes = ["Gemma3ForConditionalGeneration"]',
    ],
)
def test_a_name_elsewhere_is_found(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    package = tmp_path / "gemquant"
    (package / "models").mkdir(parents=True)
    (package / "models" / "gemma4.py").write_text('NAME = "gemma2"\n', encoding="utf-8")
    (package / "formats.py").write_text(f'"""Not gemma2."""\n\n{line}\n', encoding="utf-8")
    assert check.main(package) == 1
    (found,) = capsys.readouterr().out.splitlines()
    assert found.startswith("gemquant/formats.py:3: '")
