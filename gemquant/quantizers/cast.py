"""Cast: the same weights in another floating-point type, refused where values overflow in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gemquant.core.options import option
from gemquant.core.protocols import FLOAT16_LIMIT, ActivationRange, Block, Container, Quantizer
from gemquant.errors import GemquantError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Cast(Quantizer):
    """Convert to bfloat16, float16 or float32 without quantizing.

    Merges an adapter (--lora) and, with --text-only, extracts the text model of a multimodal Gemma,
    as every quantizer does. float16 is refused where activations would overflow in it: the largest
    residual and activation of every layer, traced over the calibration windows, must stay below
    65504.
    """

    name: ClassVar[str] = "cast"

    dtype: str = option("bfloat16", "Floating-point type to store.", choices=DTYPES)
    shard_size: str = option("5GB", "Largest weight file, such as 5GB.", size=True)
    allow_overflow: bool = option(
        False, "Store float16 even where activations overflow in it: to compute in another type."
    )

    @property
    def needs(self) -> frozenset[str]:
        """A trace for float16, which may overflow."""
        return frozenset({"moments"}) if self.dtype == "float16" else frozenset()

    def scheme_for(self, name: str, shape: tuple[int, int]) -> None:
        """Nothing is quantized."""

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """None: every model can be cast."""
        return []

    def quantize(self, block: Block, container: Container) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Change nothing; refuse a layer whose activations overflow in the type."""
        seen = block.activation_range
        if self.dtype == "float16" and not self.allow_overflow and seen is not None:
            _refuse_overflow(block.prefix.rstrip("."), seen)
        return {}


def _refuse_overflow(layer: str, seen: ActivationRange) -> None:
    if seen.fits_float16:
        return
    raise UnsupportedError(
        f"{layer} overflows in float16, which ends at {FLOAT16_LIMIT:,.0f}: its residual stream "
        f"reaches {seen.residual:,.0f} on the calibration text, its largest activation "
        f"{seen.largest:,.0f}, at {seen.where}.",
        hint="Use --dtype bfloat16; or --allow-overflow, if the runtime computes in bfloat16 or "
        "float32.",
    )
