"""What can compute: processor, NVIDIA GPUs, Apple GPUs."""

from __future__ import annotations

from gemquant.convert.doctor.packages import version
from gemquant.core.finding import Finding
from gemquant.core.resources import human_bytes
from gemquant.measure.bench.machine import machine

TORCH_FOR_CUDA = "https://pytorch.org/get-started/locally"


def devices_present() -> list[Finding]:
    """The processor and every GPU that the system tells of."""
    here = machine()
    memory = "" if here.memory_gib is None else f", {here.memory_gib} GiB"
    cores = f"{here.processor}, {here.physical_cores} cores{memory}"
    findings = [Finding("devices", "processor", "ok", cores, "--device cpu")]
    for gpu in here.accelerators:
        size = "" if gpu.memory_bytes is None else f", {human_bytes(gpu.memory_bytes)}"
        if gpu.driver is None:
            findings.append(Finding("devices", gpu.name, "ok", f"present{size}", "--device mps"))
            continue
        found, torch = f"driver {gpu.driver}{size}", version("torch")
        if torch is not None and torch.endswith("+cpu"):
            found += f"; torch {torch} cannot use it"
            command = f"install a torch for CUDA: {TORCH_FOR_CUDA}"
            findings.append(
                Finding("devices", gpu.name, "warning", found, "--device cuda", command)
            )
        else:
            findings.append(Finding("devices", gpu.name, "ok", found, "--device cuda"))
    return findings
