"""Every finding is one of what is installed, and names what would change it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from gemquant.convert import doctor
from gemquant.convert.doctor import PARTS, Finding, examine
from gemquant.measure.bench.document import Accelerator
from gemquant.numerics import native
from tests.unit.cli.conftest import Run, run  # noqa: F401 (a fixture)

PYPROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())


def found(name: str, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> Finding:
    """What is found under a name where some packages are installed in some versions."""

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)
    here = [*doctor.core_packages(), *doctor.optional_packages()]
    (finding,) = [each for each in here if each.name == name]
    return finding


EXTRAS = PYPROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_every_extra_but_the_developers_is_looked_at_as_it_installs(extra: str) -> None:
    (part,) = [part for part in PARTS if part.extra == extra]
    assert sorted(part.requires) == sorted(EXTRAS[extra])


def test_a_missing_runtime_is_a_warning_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = found("bitsandbytes", monkeypatch, {"accelerate": "1.15.0"})
    assert (finding.state, finding.found) == ("warning", "bitsandbytes missing")
    assert finding.command == "pip install 'gemquant[bitsandbytes]'"


def test_an_installed_runtime_is_told_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"accelerate": "1.15.0", "bitsandbytes": "0.50.2"}
    finding = found("bitsandbytes", monkeypatch, versions)
    assert (finding.state, finding.command) == ("ok", None)
    assert finding.found == "accelerate 1.15.0, bitsandbytes 0.50.2"


def test_another_version_than_is_known_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = found("llama.cpp", monkeypatch, {"xllamacpp": "2027.1.12000", "h11": "0.16.0"})
    assert finding.state == "problem"
    assert finding.found == "xllamacpp 2027.1.12000, needs ==2026.10.11549"
    assert finding.command == "pip install 'gemquant[gguf]'"


def test_a_core_package_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (doctor.Requirement(text).name for text in metadata.requires("gemquant") or ())
    versions = dict.fromkeys(names, "99.0") | {"packaging": "26.3"}
    finding = found("packages", monkeypatch, versions)
    assert finding.state == "problem"
    assert "torch 99.0, needs <3,>=2.6" in finding.found
    assert "'torch<3,>=2.6'" in str(finding.command)


def test_kernels_that_are_not_in_use_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "status", lambda: native.Status(None, "not built"))
    (finding,) = doctor.kernels_in_use()
    assert finding.state == "warning"
    slower = "GGUF types take 8 to 25 times as long, nf4 and fp4 10, GPTQ 2"
    assert finding.found == f"not built; everything works; {slower}"
    assert finding.command == f"install a C compiler, then: {native.REBUILD}"


def test_kernels_in_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "status", lambda: native.Status("x86-64-v3"))
    (finding,) = doctor.kernels_in_use()
    assert (finding.state, finding.found) == ("ok", "built for x86-64-v3")


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Accelerator(name="NVIDIA X", memory_bytes=10**9, driver="580", compute_capability="9.0")
    here = doctor.machine().model_copy(update={"accelerators": (gpu,)})
    monkeypatch.setattr(doctor, "machine", lambda: here)
    for torch, state in (("2.13.0+cpu", "warning"), ("2.13.0+cu130", "ok")):
        monkeypatch.setattr(doctor, "version", lambda _, torch=torch: torch)
        _, finding = doctor.devices_present()
        assert (finding.name, finding.state) == ("NVIDIA X", state)


def test_the_command_prints_everything_and_how_to_get_the_rest(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = [
        Finding("program", "gemquant", "ok", "0.1"),
        Finding("runtimes", "mlx-lm", "warning", "mlx missing", "runs MLX", "pip install mlx"),
    ]
    monkeypatch.setattr("gemquant.convert.doctor.examine", lambda: findings)
    result = run("doctor")
    assert result.code == 0
    assert "warning  mlx-lm" in result.out
    assert "mlx-lm: pip install mlx" in result.out
    listed = json.loads(run("doctor", "--json").out)
    assert [each["state"] for each in listed] == ["ok", "warning"]


def test_a_problem_decides_the_exit_code(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = Finding("runtimes", "llama.cpp", "problem", "another build", "", "pip install it")
    monkeypatch.setattr("gemquant.convert.doctor.examine", lambda: [broken])
    result = run("doctor")
    assert result.code == 8
    assert "not as it must be: llama.cpp" in result.err
    assert "hint: pip install it" in result.err


def test_everything_is_looked_at_without_importing_torch() -> None:
    program = (
        "import sys; from gemquant.convert.doctor import examine; examine(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert {finding.group for finding in examine()} == {
        "program",
        "kernels",
        "runtimes",
        "models",
        "publishing",
        "devices",
    }
