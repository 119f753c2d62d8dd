"""SmoothQuant before the toolkit rounds to 8 bits, and an emulation of its effect.

Source: Xiao et al., 2022, https://arxiv.org/abs/2211.10438. The scales are folded into the weights,
so the model does not change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.convert.external import plain_dtype
from gemquant.core.artifact import (
    FoldRecord,
    SmoothingRecord,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import Progress
from gemquant.core.targets import NpuDtype
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.plain_safetensors import PlainSafetensors
from gemquant.measure.quality.emulated import Emulated, emulate, not_emulated
from gemquant.models.structure import InputGroup, RowFold
from gemquant.quantizers.smoothquant import SmoothQuant
from gemquant.rockchip.options import RkllmOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemquant.calibration.windows import TokenWindows
    from gemquant.numerics.smoothquant import SmoothingScale
    from gemquant.rockchip.options import Conversion


def smooths(dtype: NpuDtype, options: RkllmOptions) -> bool:
    """Whether to smooth: only useful if the toolkit rounds weights and activations to 8 bits."""
    return options.smooth and not _not_applicable(dtype, options)


def _not_applicable(dtype: NpuDtype, options: RkllmOptions) -> str:
    """Why neither smoothing nor its emulation applies; empty if they do."""
    if dtype.activation_bits != 8 or dtype.weight_bits != 8:
        return f"{dtype.name} is not 8 bits for both weights and activations"
    return "only plain rounding is emulated, not --gptq" if options.gptq else ""


class Folds:
    """Collects the scales that are folded into a model's layers."""

    def __init__(self, conversion: Conversion) -> None:
        self.quantizer = SmoothQuant(conversion.dtype.group_size, self._add)
        self._folds: list[FoldRecord] = []

    def _add(self, prefix: str, group: InputGroup, found: SmoothingScale) -> None:
        if not found.by_activations:
            return
        fold = group.fold
        assert fold is not None
        self._folds.append(
            FoldRecord(
                linears=tuple(prefix + linear for linear in group.linears),
                folded_into=prefix + (fold.linear if isinstance(fold, RowFold) else fold.norm),
                by_activations=found.by_activations,
                by_weights=found.by_weights,
            )
        )

    def record(self, checkpoint: Checkpoint) -> SmoothingRecord:
        """All folds, for the manifest."""
        return SmoothingRecord(folds=tuple(self._folds), float_dtype=plain_dtype(checkpoint))


def emulated(
    conversion: Conversion,
    checkpoint: Checkpoint,
    model: Path,
    evaluation: Sequence[TokenWindows],
    *,
    smoothed: bool,
    progress: Progress,
) -> tuple[LevelEvaluation, ...]:
    """Emulate w8a8 on the toolkit's input, and on the original too if the input is smoothed.

    model: folder of the input. Empty without evaluation text.
    """
    if not evaluation:
        return ()
    dtype = conversion.dtype
    if reason := _not_applicable(dtype, conversion.options):
        return (not_emulated(dtype.name, reason),)
    models = [Emulated(PlainSafetensors().open(model), smoothing=smoothed)]
    if smoothed:
        models.append(Emulated(checkpoint, smoothing=False))
    return tuple(
        emulate(
            checkpoint,
            models,
            evaluation,
            dtype=dtype.name,
            group_size=dtype.group_size,
            progress=progress,
        )
    )
