"""The options of ``gemquant rkllm``; nothing heavy is imported for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gemquant.core.options import option


@dataclass(frozen=True)
class RkllmOptions:
    """RKLLM files for Rockchip's NPUs, through the vendor's own toolkit.

    The toolkit runs under an interpreter of its own (--toolkit), reads a folder that is written for
    it, and decides the numbers. With --prepare-only nothing of it is needed: folder, calibration
    and job are left to be converted elsewhere.
    """

    name: ClassVar[str] = "rkllm"
    target: ClassVar[str] = "rk3588"

    quantized_dtype: str = option("", "Quantized dtype, such as w8a8; empty for the target's own.")
    optimization_level: int = option(0, "1: more exact, far slower to convert.", choices=(0, 1))
    algorithm: str = option("normal", "Quantization algorithm of the toolkit: normal, grq, gdq.")
    gptq: bool = option(
        False, "Round to int8 here, each column making up for the errors before it; grouped w8a8."
    )
    smooth: bool = option(
        True, "Fold outliers of activations into the weights first; for plain w8a8, exact."
    )
    npu_cores: int = option(0, "NPU cores to run on; 0 for all.", minimum=0)
    hybrid_rate: float = option(
        0.0, "Share of layers in the grouped form of the dtype, or in the plain one of a grouped."
    )
    max_context: int = option(0, "Longest context; 0 leaves it to the toolkit.", minimum=0)
    simulate: int = option(
        0, "Windows of each evaluation slice that the toolkit's simulator predicts.", minimum=0
    )
    emulate: int = option(
        2, "Windows of each evaluation slice that w8a8 is emulated on, here; 0 for none.", minimum=0
    )
