"""What the machine tells is recorded; what it does not tell is None."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gemquant.measure.bench import machine
from gemquant.measure.bench.child import PeakSampler, anonymous_bytes


def test_the_fingerprint_is_of_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.machine()
    assert first.fingerprint == machine.machine().fingerprint
    assert first.logical_processors >= (first.physical_cores or 1) >= 1
    monkeypatch.setattr(machine, "processor", lambda: "Another")
    assert machine.machine().fingerprint != first.fingerprint


def test_a_new_driver_is_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = {}
    for driver in ("570.1", "580.2"):
        answers = {"name": "NVIDIA X", "memory.total": "81559", "driver_version": driver}
        monkeypatch.setattr(
            machine, "nvidia_smi", lambda facts, a=answers: [[a.get(fact, "9.0") for fact in facts]]
        )
        found = machine.machine()
        (gpu,) = [gpu for gpu in found.accelerators if gpu.name == "NVIDIA X"]
        assert (gpu.memory_bytes, gpu.driver) == (81559 * 2**20, driver)
        prints[driver] = found.fingerprint
    assert prints["570.1"] == prints["580.2"]


def test_without_the_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.nvidia_accelerators() == []
    assert machine.nvidia_conditions() == []


def test_what_a_system_does_not_tell_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path)
    monkeypatch.setattr(machine, "_lines", lambda path: [])
    found = machine.conditions()
    assert (found.governor, found.clock_mhz, found.clock_limit_mhz) == (None, None, None)
    assert found.virtual is None


def test_governor_and_clocks_are_those_of_usable_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path)
    monkeypatch.setattr(machine, "usable_cpus", lambda: {0, 2})
    for number, clock in ((0, 1_000_000), (1, 9_000_000), (2, 3_000_000)):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("powersave\n" if number == 1 else "performance\n")
        (folder / "scaling_cur_freq").write_text(f"{clock}\n")
        (folder / "cpuinfo_max_freq").write_text("3500000\n")
    found = machine.conditions()
    assert (found.governor, found.clock_mhz, found.clock_limit_mhz) == (
        "performance",
        "1000 to 3000",
        "3500",
    )


@pytest.mark.skipif(anonymous_bytes(os.getpid()) is None, reason="the system does not tell")
def test_the_sampler_sees_what_a_process_allocates() -> None:
    program = "import time; x = bytearray(60_000_000); time.sleep(0.3)"
    process = subprocess.Popen(["python3", "-S", "-c", program])
    sampler = PeakSampler(process.pid)
    sampler.start()
    process.wait()
    sampler.stop()
    assert sampler.peak is not None
    assert 60_000_000 < sampler.peak < 120_000_000
