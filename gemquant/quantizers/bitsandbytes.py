"""The data types of bitsandbytes, without calibration: LLM.int8(), NF4 and FP4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from gemquant.core.options import option
from gemquant.core.protocols import Block, Container, QuantizedWeight, Quantizer
from gemquant.core.weights import (
    CodebookName,
    CodebookScheme,
    CodebookWeight,
    RowwiseScheme,
    RowwiseWeight,
)
from gemquant.errors import GemquantError
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.quantizers.options import is_skipped, unused_patterns

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
COMPUTE_DTYPES = ("bfloat16", "float16", "float32")
STORAGE_DTYPES = ("uint8", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Int8(Quantizer):
    """LLM.int8() for bitsandbytes.

    Weights as 8-bit rows; the runtime computes inputs with outliers in 16 bits.
    Source: Dettmers et al., 2022, https://arxiv.org/abs/2208.07339.
    """

    name: ClassVar[str] = "int8"
    needs: ClassVar[frozenset[str]] = frozenset()

    threshold: float = option(
        6.0, "Inputs larger than this are computed in float16; 0 for none.", minimum=0
    )
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")

    def scheme_for(self, name: str, shape: tuple[int, int]) -> RowwiseScheme | None:  # noqa: ARG002
        """The one scheme for every decoder linear that is not skipped."""
        if name in {EMBEDDING, HEAD} or is_skipped(name, self.skip):
            return None
        return RowwiseScheme(float(self.threshold))

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Patterns that match nothing."""
        return unused_patterns(linears, self.skip)

    def quantize(
        self,
        block: Block,
        container: Container,  # noqa: ARG002
    ) -> Mapping[str, Tensor | QuantizedWeight]:
        """Round the rows of every linear of the block."""
        return _quantized(block, self.scheme_for, RowwiseWeight.of)


@dataclass(frozen=True)
class _Codebook(Quantizer):
    """What NF4 and FP4 share."""

    name: ClassVar[CodebookName]
    needs: ClassVar[frozenset[str]] = frozenset()

    block_size: int = option(64, "Consecutive weights that share one scale.", choices=BLOCK_SIZES)
    double_quantization: bool = option(True, "Quantize the scales too, to 8 bits.")
    bnb_compute_dtype: str = option(
        "bfloat16",
        "Type that the runtime multiplies in.",
        choices=COMPUTE_DTYPES,
        formerly="compute_dtype",
    )
    storage_dtype: str = option(
        "uint8",
        "Type that the packed codes are stored as: that of the rest, for FSDP.",
        choices=STORAGE_DTYPES,
    )
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Patterns that match nothing."""
        return unused_patterns(linears, self.skip)

    def quantize(
        self,
        block: Block,
        container: Container,  # noqa: ARG002
    ) -> Mapping[str, Tensor | QuantizedWeight]:
        """Give every weight of the block's linears the nearest value of the codebook."""
        return _quantized(block, self.scheme_for, CodebookWeight.of)

    def scheme_for(self, name: str, shape: tuple[int, int]) -> CodebookScheme | None:  # noqa: ARG002
        """The one scheme for every decoder linear that is not skipped."""
        if name in {EMBEDDING, HEAD} or is_skipped(name, self.skip):
            return None
        return CodebookScheme(
            type(self).name,
            self.block_size,
            self.double_quantization,
            self.bnb_compute_dtype,
            self.storage_dtype,
        )


@dataclass(frozen=True)
class NF4(_Codebook):
    """bitsandbytes NF4 (QLoRA's 4-bit NormalFloat).

    Blocks of weights, each the nearest of 16 quantiles of a normal distribution.
    Source: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314, section 3.
    """

    name: ClassVar[CodebookName] = "nf4"


@dataclass(frozen=True)
class FP4(_Codebook):
    """bitsandbytes FP4.

    Blocks of weights, each the nearest of 15 floating-point numbers of 4 bits.
    Source: bitsandbytes' data type ``fp4``.
    """

    name: ClassVar[CodebookName] = "fp4"


S = TypeVar("S")


def _quantized(
    block: Block,
    scheme_for: Callable[[str, tuple[int, int]], S | None],
    quantize: Callable[[Tensor, S], QuantizedWeight],
) -> Mapping[str, Tensor | QuantizedWeight]:
    """Quantize every linear of a block that has a scheme, by short name."""
    quantized: dict[str, Tensor | QuantizedWeight] = {}
    for linear in block.structure.linears:
        name = f"{linear}.weight"
        weight = block.weights[name]
        scheme = scheme_for(block.prefix + name, (weight.shape[0], weight.shape[1]))
        if scheme is not None:
            quantized[name] = quantize(weight, scheme)
    return quantized
