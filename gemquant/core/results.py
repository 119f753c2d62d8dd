"""What was measured: figures with their errors, slices, certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FLOAT16_LIMIT = 65504.0
"""The largest float16."""


@dataclass(frozen=True)
class Measurement:
    """A mean over tokens with its standard error over windows."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class LayerReach:
    """How large one layer's activations become: absolute values over all calibration tokens.

    residual: of the residual stream, the layer's own output. largest: of that and of every
    module's output and linear's input inside the layer. where: what the largest was.
    """

    residual: float
    largest: float
    where: str

    @property
    def fits_float16(self) -> bool:
        """Whether float16 holds all of it."""
        return self.largest < FLOAT16_LIMIT


@dataclass(frozen=True)
class SliceResult:
    """One evaluation slice: original against quantized, same tokens.

    Divergences are in nats per token; agreement is a fraction.
    """

    slice: str
    windows: int
    tokens: int
    perplexity_original: Measurement
    perplexity_quantized: Measurement
    kl_mean: Measurement
    kl_p999: Measurement
    top1_agreement: Measurement


Level = Literal["reference", "native", "emulated", "vendor-sim"]


@dataclass(frozen=True)
class Emulation:
    """A corner of the bracket that level ``emulated`` consists of.

    dtype: what is emulated. activations: ``per token`` or ``per tensor``. head: ``float16`` or
    ``int8``. smoothing: whether activation outliers were folded into the weights first.
    """

    dtype: str
    activations: Literal["per token", "per tensor"]
    head: Literal["float16", "int8"]
    smoothing: bool


@dataclass(frozen=True)
class Certificate:
    """What was lost, at one level; levels are never mixed.

    kl_from_reference: mean divergence of this level's predictions from level ``reference``'s, over
    one window of every slice: how far the runtime's own arithmetic moves them, in nats per token.
    emulation: which corner of the bracket, at level ``emulated``.
    """

    level: Level
    runtime: str
    slices: Sequence[SliceResult] = field(default_factory=tuple)
    token_stream: str = ""
    not_run: str | None = None
    kl_from_reference: Measurement | None = None
    emulation: Emulation | None = None
