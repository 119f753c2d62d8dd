"""The options of ``gemquant onnx``; nothing heavy is imported for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gemquant.core.options import option

BITS = (4, 8, 16, 32)
GROUP_SIZES = (16, 32, 64, 128, 256)
ACTIVATIONS: Mapping[str, int] = {"int8": 4, "float32": 1}
"""Types of activations, and the builder's numbers for them."""


@dataclass(frozen=True)
class OnnxOptions:
    """ONNX for onnxruntime, through the model builder of onnxruntime-genai.

    Weights in 4 or 8 bits, rounded to nearest in groups by the builder; 16 bits (bfloat16) for
    CUDA, 32 bits for a CPU. The builder runs under an interpreter of its own (--python), which
    is this one where the extra onnx is installed, and holds the whole model in memory.
    """

    name: ClassVar[str] = "onnx"

    bits: int = option(4, "Bits per weight.", choices=BITS)
    group_size: int = option(32, "Input channels that share one scale.", choices=GROUP_SIZES)
    symmetric: bool = option(True, "Fix the zero point at the middle instead of storing one.")
    activations: str = option(
        "int8",
        "Type that onnxruntime multiplies quantized weights in, on a CPU.",
        choices=tuple(ACTIVATIONS),
    )

    @property
    def quantized(self) -> bool:
        """Whether weights become codes."""
        return self.bits < 16
