"""Options of the programs that decide the numbers; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.options import option
from gemquant.quantizers import qat as grids

if TYPE_CHECKING:
    from gemquant.core.recipe import Recipe
    from gemquant.core.targets import Target
    from gemquant.runtimes.worker import Limits

ENGINES = ("gemquant", "autoawq")
AWQ_GROUP_SIZES = (32, 64, 128)
ONNX_BITS = (4, 8, 16, 32)
ONNX_GROUP_SIZES = (16, 32, 64, 128, 256)
ACTIVATIONS: Mapping[str, int] = {"int8": 4, "float32": 1}
"""Types of activations, and the ONNX builder's numbers for them."""


@dataclass(frozen=True)
class AutoAwqOptions:
    """AutoAWQ itself, to reproduce what it makes."""

    name: ClassVar[str] = "awq"

    engine: str = option("autoawq", "Program that decides the numbers.", choices=("autoawq",))
    bits: int = option(4, "Bits per weight.", choices=(4,))
    group_size: int = option(128, "Input channels that share one scale.", choices=AWQ_GROUP_SIZES)
    clip: bool = option(True, "Search each group's range instead of covering all of it.")


@dataclass(frozen=True)
class OnnxOptions:
    """Settings of onnxruntime-genai's model builder."""

    name: ClassVar[str] = "onnx"
    target: ClassVar[str] = "cpu"

    bits: int = option(4, "Bits per weight.", choices=ONNX_BITS)
    group_size: int = option(32, "Input channels that share one scale.", choices=ONNX_GROUP_SIZES)
    symmetric: bool = option(True, "Fix the zero point at the middle instead of storing one.")
    activations: str = option(
        "int8",
        "Type that onnxruntime multiplies quantized weights in, on a CPU.",
        choices=tuple(ACTIVATIONS),
    )
    qat: str = option("auto", grids.HELP, choices=grids.CHOICES)

    @property
    def quantized(self) -> bool:
        """Whether weights become codes."""
        return self.bits < 16


@dataclass(frozen=True)
class ImatrixOptions:
    """An importance matrix as a file next to the artifacts, which has no options of its own."""

    name: ClassVar[str] = "imatrix"
    target: ClassVar[str] = "cpu"


@dataclass(frozen=True)
class ToolSettings:
    """Where and within what a tool runs. python: None for this interpreter."""

    python: str | None
    seconds: float
    memory_bytes: int

    @property
    def limits(self) -> Limits:
        """As the worker takes them."""
        from gemquant.runtimes.worker import Limits

        return Limits(self.seconds, self.memory_bytes)


@dataclass(frozen=True)
class ExternalRequest:
    """One artifact for another program to make.

    recipe: complete but for the container. options: the program's. output: None for a name made
    from the model and the options, in ``within``. only_missing: take what stands already.
    """

    recipe: Recipe
    options: AutoAwqOptions | OnnxOptions
    target: Target
    output: Path | None
    threads: int
    force: bool
    tool: ToolSettings
    within: Path = field(default_factory=Path)
    only_missing: bool = False
