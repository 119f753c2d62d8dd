"""Plug-ins: listed without import, imported by name, refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemquant.convert.plugins import exporter, plugins, quantizer_type
from gemquant.errors import UnsupportedError, UsageError

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lay down a distribution with one module ``foreign`` and one entry point."""

    def lay_down(group: str, name: str, code: str) -> None:
        (tmp_path / "foreign.py").write_text(code)
        info = tmp_path / "foreign-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gemquant.{group}]\n{name} = foreign:Thing\n")
        monkeypatch.syspath_prepend(tmp_path)
        plugins.cache_clear()

    yield lay_down
    plugins.cache_clear()
    sys.modules.pop("foreign", None)


def test_ours_are_these() -> None:
    assert list(plugins("quantizer")) == ["awq", "cast", "fp4", "gguf", "int8", "nf4", "rtn"]
    assert list(plugins("exporter")) == [
        "awq-gemm",
        "bitsandbytes",
        "compressed-tensors",
        "gguf",
        "gptq",
        "metal",
        "mlx",
        "onnx",
        "safetensors",
    ]


@pytest.mark.parametrize("name", ["awq", "cast", "fp4", "gguf", "int8", "nf4", "rtn"])
def test_each_quantizer_knows_its_name(name: str) -> None:
    assert quantizer_type(name).name == name


@pytest.mark.parametrize("name", plugins("exporter"))
def test_each_exporter_knows_its_name(name: str) -> None:
    assert exporter(name).name == name


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"awk: no such quantizer.\n.*Did you mean awq\?"):
        quantizer_type("awk")


def test_listing_imports_nothing(install: Install) -> None:
    install("quantizers", "thing", "raise RuntimeError('imported')")
    assert plugins("quantizer")["thing"].package == "foreign"


def test_a_plug_in_that_cannot_be_imported_is_named_with_its_package(install: Install) -> None:
    install("quantizers", "thing", "import not_there_at_all")
    with pytest.raises(UnsupportedError, match="foreign:Thing of foreign cannot be imported"):
        quantizer_type("thing")


def test_a_plug_in_that_calls_itself_otherwise_is_refused(install: Install) -> None:
    install("exporters", "thing", "class Thing:\n    name = 'other'\n")
    with pytest.raises(UnsupportedError, match="exporter thing: its class calls itself 'other'"):
        exporter("thing")


def test_a_quantizer_that_is_no_dataclass_is_refused(install: Install) -> None:
    install("quantizers", "thing", "class Thing:\n    name = 'thing'\n")
    with pytest.raises(UnsupportedError, match="is not a dataclass"):
        quantizer_type("thing")


def test_two_packages_with_one_name_are_refused_when_it_is_used(install: Install) -> None:
    install("quantizers", "awq", "class Thing:\n    name = 'awq'\n")
    with pytest.raises(UsageError, match="brought by both gemquant and foreign"):
        quantizer_type("awq")
