"""Runtimes that are not installed: artifacts are made all the same, and what to install is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gemquant.errors import RuntimeMissingError
from gemquant.formats.onnx import OnnxGraph
from gemquant.measure.quality.native import NativeRuntime
from gemquant.runtimes.onnx import OnnxRuntime
from tests.helpers.tiny_gemma import Kind
from tests.unit.cli.conftest import Run

FEW = "--threads 1 --samples 2 --seq-len 24 --eval-windows 1 --eval-slices english".split()
VERSIONS = "gemquant.runtimes.runtime.installed_version"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["nf4"],
            "bitsandbytes and accelerate not installed; pip install 'gemquant[bitsandbytes]'",
        ),
        (
            ["rtn", "--group-size", "32", "--target", "cpu"],
            "compressed-tensors and accelerate not installed; pip install 'gemquant[native]'",
        ),
        (
            ["rtn", "--group-size", "32", "--exporter", "awq-gemm"],
            "gptqmodel and accelerate not installed; pip install gptqmodel accelerate",
        ),
        (
            ["rtn", "--group-size", "32", "--target", "mps"],
            "mlx and mlx-lm not installed; pip install 'gemquant[mlx]'",
        ),
    ],
    ids=["bitsandbytes", "compressed-tensors", "gptqmodel", "mlx"],
)
def test_without_its_runtime_an_artifact_is_made_and_eval_says_what_to_install(
    run: Run,
    tiny_folders: dict[Kind, Path],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(VERSIONS, lambda package: None)
    quantizer, *options = command
    made = run(quantizer, str(tiny_folders["gemma2"]), *FEW, *options, "-o", "out")
    assert made.code == 0, made.err
    result = run("eval", "out", "--threads", "1")
    assert result.code == 0, result.err
    assert f": not run, {message}" in result.out


def test_on_windows_mlx_is_said_to_have_no_build(
    run: Run, tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--target", "mps", "--group-size", "32", "-o", "out")
    assert run("rtn", str(tiny_folders["gemma2"]), *FEW, *options).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        runtime = NativeRuntime.find(Path("out"), "mlx")
    assert runtime.not_run == ("MLX has no build for Windows; run it on macOS, or on Linux's CPU")


def test_without_the_extra_onnx_an_artifact_cannot_be_read_back_and_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeMissingError, match="onnx is not installed") as caught:
        OnnxGraph.open(tmp_path)
    assert caught.value.hint == "pip install 'gemquant[onnx]'"


def test_without_onnxruntime_level_native_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gemquant.runtimes.onnx.installed_version", lambda package: None)
    assert OnnxRuntime.unavailable("onnx") == (
        "onnxruntime not installed; pip install 'gemquant[onnx]'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cpu", "--bits", "2"], "hint: Accepted are compressed-tensors: 3/4/8 bits"),
        (
            ["--target", "cuda", "--bits", "3", "--exporter", "awq-gemm"],
            "hint: Use --bits 4, or another container.",
        ),
        (
            ["--target", "mps", "--exporter", "metal", "--bits", "6"],
            "hint: Use --bits 2, 4, 8, or another container.",
        ),
        (["--bits", "5"], "--bits 5: must be one of 2, 3, 4, 6, 8."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bits_that_a_runtime_lacks_are_refused_with_those_that_it_has(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("rtn", str(tiny_folders["gemma2"]), *FEW, "--group-size", "32", *options)
    assert result.code in {2, 4}
    assert message in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []
