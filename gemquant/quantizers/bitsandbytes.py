"""The data types of bitsandbytes, without calibration: LLM.int8(), NF4 and FP4."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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


class _DecoderLinears(Quantizer):
    """Quantizes every decoder linear that is not skipped, all to one scheme."""

    needs: ClassVar[frozenset[str]] = frozenset()
    skip: str

    @property
    @abstractmethod
    def scheme(self) -> RowwiseScheme | CodebookScheme:
        """The one scheme."""

    def scheme_for(
        self,
        name: str,
        shape: tuple[int, int],  # noqa: ARG002
    ) -> RowwiseScheme | CodebookScheme | None:
        """The one scheme; None for skipped linears, the embedding and the head."""
        return None if name in {EMBEDDING, HEAD} or is_skipped(name, self.skip) else self.scheme

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Patterns that match nothing."""
        return unused_patterns(linears, self.skip)

    def quantize(
        self,
        block: Block,
        container: Container,  # noqa: ARG002
    ) -> Mapping[str, Tensor | QuantizedWeight]:
        """Quantize every linear of the block that has a scheme."""
        quantized: dict[str, Tensor | QuantizedWeight] = {}
        for name in (f"{linear}.weight" for linear in block.structure.linears):
            weight = block.weights[name]
            scheme = self.scheme_for(block.prefix + name, (weight.shape[0], weight.shape[1]))
            if isinstance(scheme, RowwiseScheme):
                quantized[name] = RowwiseWeight.of(weight, scheme)
            elif scheme is not None:
                quantized[name] = CodebookWeight.of(weight, scheme)
        return quantized


@dataclass(frozen=True)
class Int8(_DecoderLinears):
    """LLM.int8() for bitsandbytes.

    Weights as 8-bit rows; the runtime computes inputs with outliers in 16 bits.
    Source: Dettmers et al., 2022, https://arxiv.org/abs/2208.07339.
    """

    name: ClassVar[str] = "int8"

    threshold: float = option(
        6.0, "Inputs larger than this are computed in float16; 0 for none.", minimum=0
    )
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")

    @property
    def scheme(self) -> RowwiseScheme:
        """8-bit rows."""
        return RowwiseScheme(float(self.threshold))


@dataclass(frozen=True)
class _Codebook(_DecoderLinears):
    """Base of NF4 and FP4."""

    name: ClassVar[CodebookName]

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

    @property
    def scheme(self) -> CodebookScheme:
        """Blocks of 4-bit codes."""
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
