"""Every release is called exactly as documented; a stand-in that checks signatures records it.

The stand-in is no toolkit: this says nothing of conversions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemquant.core.protocols import Silence
from gemquant.core.targets import ToolkitVersion, load_toolkit
from gemquant.errors import WorkerError
from gemquant.rockchip.artifact import ConvertResult
from gemquant.rockchip.calls import calls, file_name
from gemquant.rockchip.options import Conversion
from gemquant.rockchip.rkllm import PROGRAM
from gemquant.rockchip.toolkit import PACKAGES
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool
from tests.helpers.signature_checker import signature_checker
from tests.unit.rockchip.conftest import Converting

RELEASES = [release.version for release in load_toolkit("rkllm-toolkit").versions]
AMPLE = Limits(seconds=60, memory_bytes=2_000_000_000)


def run_stand_in(
    conversion: Conversion, tmp_path: Path, *, signatures: ToolkitVersion | None = None, **made: Any
) -> tuple[ConvertResult, list[Any]]:
    """Run the program under the stand-in; return its answer and the calls that arrived."""
    log, scratch = tmp_path / "log", tmp_path / "scratch"
    scratch.mkdir()
    python = signature_checker(tmp_path / "venv", signatures or conversion.release, log=log, **made)
    job = {
        "imports": "rkllm.api",
        "calls": calls(conversion, dtype="bfloat16", file="out.rkllm"),
        "file": "out.rkllm",
    }
    answer = run_tool(
        Tool("rkllm-toolkit", PROGRAM),
        job,
        ConvertResult,
        interpreter=Interpreter.ask(str(python), PACKAGES),
        limits=AMPLE,
        folder=scratch,
        threads=1,
        progress=Silence(),
    )
    return answer, [json.loads(line) for line in log.read_text().splitlines()]


BUILD = {
    "do_quantization": True,
    "optimization_level": 0,
    "quantized_dtype": "w8a8",
    "target_platform": "rk3588",
}
MORE = {
    "quantized_algorithm": "normal",
    "num_npu_core": 3,
    "extra_qparams": None,
    "dataset": "calibration.json",
    "hybrid_rate": 0.0,
}
LORA = {"model": "model", "device": "cpu", "model_lora": None}
DTYPE = {"dtype": "bfloat16", "custom_config": None, "load_weight": True}


def expected(version: str) -> list[Any]:
    """The three calls of a release, from its documentation."""
    old, middle = version == "1.0.1", version.startswith("1.1")
    load = {"model": "model", "device": "cpu"} if old else LORA if middle else {**LORA, **DTYPE}
    build = BUILD if old else {**BUILD, **MORE}
    export: dict[str, Any] = {"export_path": "out.rkllm"}
    if version == "1.3.0":
        export |= {"export_tokenizer": True, "export_embedding": True}
    return [["load_huggingface", load], ["build", build], ["export_rkllm", export]]


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_gets_its_own_parameters_in_order(
    converting: Converting, tmp_path: Path, version: str
) -> None:
    answer, arrived = run_stand_in(converting(version), tmp_path)
    defaulted = {"max_context": None} if version >= "1.2" else {}
    wanted = expected(version)
    assert [[call.function, dict(call.arguments)] for call in answer.calls] == wanted
    wanted[1][1] = {**wanted[1][1], **defaulted}
    assert arrived == [["RKLLM", {}], *wanted]
    assert answer.versions["rkllm-toolkit"] == version


@pytest.mark.parametrize("version", RELEASES)
def test_options_arrive_as_given(converting: Converting, tmp_path: Path, version: str) -> None:
    given: dict[str, Any] = {"optimization_level": 1}
    if version != "1.0.1":
        given |= {"quantized_dtype": "w8a8_g128", "hybrid_rate": 0.25, "npu_cores": 2}
    if version >= "1.2":
        given |= {"max_context": 4096}
    answer, arrived = run_stand_in(converting(version, **given), tmp_path)
    wanted = {"optimization_level": 1, "quantized_dtype": "w8a8", "target_platform": "rk3588"}
    if version != "1.0.1":
        wanted |= {"quantized_dtype": "w8a8_g128", "hybrid_rate": 0.25, "num_npu_core": 2}
    if version >= "1.2":
        wanted |= {"max_context": 4096}
    build = dict(answer.calls[1].arguments)
    assert {key: build[key] for key in wanted} == wanted
    assert arrived[2] == ["build", build]
    assert list(build) == list(load_toolkit("rkllm-toolkit").version(version).build)  # type: ignore[union-attr]


@pytest.mark.parametrize("version", [each for each in RELEASES if each >= "1.2"])
def test_a_gptq_checkpoint_is_given_without_a_dataset(
    converting: Converting, tmp_path: Path, version: str
) -> None:
    """As in the example of the SDK's documentation, section 3.1.5."""
    conversion = converting(version, quantized_dtype="w8a8_g256", gptq=True)
    _, arrived = run_stand_in(conversion, tmp_path)
    given = arrived[2][1]
    assert (given["quantized_dtype"], given["dataset"]) == ("w8a8_g256", None)


def test_a_file_is_named_by_what_is_passed_on(converting: Converting) -> None:
    conversion = converting(
        "1.2.3", quantized_dtype="w8a8_g128", optimization_level=1, hybrid_rate=0.25
    )
    name = "gemma-2-9b-it-rk3588-w8a8_g128-opt-1-hybrid-ratio-0.25.rkllm"
    assert file_name("gemma-2-9b-it", conversion) == name


@pytest.mark.parametrize("returned", [-1, None, True])
@pytest.mark.parametrize("function", ["load_huggingface", "build", "export_rkllm"])
def test_a_status_that_is_not_0_ends_the_conversion(
    converting: Converting, tmp_path: Path, function: str, returned: object
) -> None:
    with pytest.raises(WorkerError, match=f"{function} returned {returned!r}, not 0"):
        run_stand_in(converting("1.2.3"), tmp_path, fails={function: returned})


def test_a_toolkit_with_other_parameters_is_refused_before_it_is_called(
    converting: Converting, tmp_path: Path
) -> None:
    other = load_toolkit("rkllm-toolkit").version("1.0.1")
    with pytest.raises(WorkerError, match="load_huggingface of this rkllm-toolkit has other"):
        run_stand_in(converting("1.2.3"), tmp_path, signatures=other)
    assert [json.loads(line)[0] for line in (tmp_path / "log").read_text().splitlines()] == [
        "RKLLM"
    ]


def test_a_file_that_is_not_there_is_no_success(converting: Converting, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"every call returned 0, and out\.rkllm is not there"):
        run_stand_in(converting("1.2.3"), tmp_path, size=0)
