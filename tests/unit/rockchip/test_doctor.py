"""What a machine has to convert for an NPU with, and what brings the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.core.targets import load_target, load_toolkit
from gemquant.errors import UnsupportedError
from gemquant.rockchip import doctor
from gemquant.rockchip.doctor import examine_target
from tests.helpers.signature_checker import signature_checker


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environments but those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_toolkit_the_steps_to_one_are_given() -> None:
    (finding,) = (f for f in examine_target(load_target("rk3588")) if f.name == "rkllm-toolkit")
    assert (finding.state, finding.found) == ("warning", "not found")
    assert finding.command is not None
    assert "rkllm_toolkit-1.3.0-*-linux_x86_64.whl" in finding.command


def test_every_environment_is_named_with_what_it_converts(tmp_path: Path) -> None:
    toolkit = load_toolkit("rkllm-toolkit")
    for number in ("1.0.1", "1.2.0"):
        release = toolkit.version(number)
        assert release is not None
        signature_checker(tmp_path / f"venv-{number}", release, log=tmp_path / "log")
    found = {f.name: f for f in examine_target(load_target("rk3588"))}
    old, new = found["rkllm-toolkit 1.0.1"], found["rkllm-toolkit 1.2.0"]
    assert old.state == new.state == "ok"
    assert old.found.endswith("venv-1.0.1/bin/python; gemma to w8a8")
    assert "gemma, gemma2, gemma3_text to w8a8, w8a8_g128" in new.found
    assert new.purpose == "runtime 1.2.0, NPU driver 0.9.8 or newer on the board"
    rv = {f.name: f for f in examine_target(load_target("rv1126b"))}
    assert rv["rkllm-toolkit 1.2.0"].state == "warning"
    assert "does not support rv1126b" in rv["rkllm-toolkit 1.2.0"].found


def test_the_stub_of_pypi_is_named_wherever_it_is(tmp_path: Path) -> None:
    release = load_toolkit("rkllm-toolkit").newest
    python = signature_checker(tmp_path / "venv", release, log=tmp_path / "log")
    (site,) = (tmp_path / "venv").glob("lib/python3.*/site-packages")
    (site / "rkllm-0.0.1.dist-info").mkdir()
    (finding,) = (f for f in examine_target(load_target("rk3588")) if f.name == "rkllm")
    assert finding.state == "warning"
    assert finding.found == f"0.0.1 in {python}: a PyPI package that is not the vendor's toolkit"
    assert finding.command == f"{python} -m pip uninstall rkllm"


@pytest.mark.parametrize(
    ("digest", "said"),
    [
        ("36880ff8e12844c60d6e3d876cf9cef40de3a0bb9000a0a1c6a1819ff00ee857", "the vendor's"),
        ("0" * 64, "unknown"),
    ],
)
def test_the_wheel_that_pip_noted_is_compared(tmp_path: Path, digest: str, said: str) -> None:
    release = load_toolkit("rkllm-toolkit").version("1.0.1")
    assert release is not None
    signature_checker(tmp_path / "venv", release, log=tmp_path / "log")
    (info,) = (tmp_path / "venv").glob("lib/python3.*/site-packages/rkllm_toolkit-*.dist-info")
    noted = {"url": "file:///x.whl", "archive_info": {"hashes": {"sha256": digest}}}
    (info / "direct_url.json").write_text(json.dumps(noted))
    (finding,) = (f for f in examine_target(load_target("rk3588")) if "1.0.1" in f.name)
    assert f"wheel {digest[:12]}…, {said}" in finding.found


def test_another_system_is_told_to_convert_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    (finding,) = (f for f in examine_target(load_target("rk3588")) if f.name == "system")
    assert finding.state == "warning"
    assert "--prepare-only" in str(finding.command)


def test_a_target_without_an_npu_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="its runtimes are examined without --target"):
        examine_target(load_target("cuda"))
