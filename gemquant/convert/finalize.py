"""From finished weight files to an artifact: configuration, tokenizer, manifest, card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemquant.calibration.windows import TokenWindows
from gemquant.core.artifact import (
    ActivationRangeRecord,
    CalibrationRecord,
    ConversionRecord,
    Fallback,
    GridRecord,
    Manifest,
    RoutedRecord,
    SmoothingRecord,
    Source,
    TableRecord,
    TokensWithoutRow,
    TowerRecord,
    finalize,
    quantization_record,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import Layout
from gemquant.core.recipe import Recipe
from gemquant.errors import OutputError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.structure import EMBEDDING

_LISTED = 4
LIBRARIES = ("gemquant", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class ArtifactFacts:
    """What is known of every artifact when its weight files are complete.

    recipe: with the container that was chosen. quantizer: what decided the numbers.
    float_dtype: type of everything that is not quantized. file_bytes: of all weight files.
    calibration: None where the numbers depend on no text. libraries: further versions.
    towers: what passed through of a multimodal model; their bytes are among ``file_bytes``.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    container: str
    quantizer: str
    layout: Layout
    float_dtype: str
    file_bytes: int
    calibration: TokenWindows | None
    certificates: tuple[LevelEvaluation, ...]
    libraries: Mapping[str, str]
    fallbacks: Sequence[Fallback] = ()
    activation_range: ActivationRangeRecord | None = None
    routed: Sequence[RoutedRecord] = ()
    per_layer_embedding: TableRecord | None = None
    towers: Sequence[TowerRecord] = ()
    grid: GridRecord | None = None
    conversion: ConversionRecord | None = None
    smoothing: SmoothingRecord | None = None

    def manifest(self) -> Manifest:
        """The manifest, complete but for the files."""
        provenance = self.checkpoint.provenance
        return Manifest(
            container=self.container,
            architecture=self.checkpoint.config["model_type"],
            base_model=provenance.base_model,
            license=provenance.license,
            source=Source(
                ref=self.checkpoint.ref,
                revision=self.checkpoint.revision,
                files=self.checkpoint.source_digest(),
            ),
            recipe=self.recipe.to_dict(),
            quantization=quantization_record(
                self.quantizer,
                self.layout,
                float_dtype=self.float_dtype,
                file_bytes=self.file_bytes - sum(tower.bytes for tower in self.towers),
            ),
            calibration=_calibration_record(self.calibration),
            certificates=self.certificates,
            libraries={**library_versions(), **self.libraries},
            fallbacks=tuple(self.fallbacks),
            activation_range=self.activation_range,
            routed=tuple(self.routed),
            per_layer_embedding=self.per_layer_embedding,
            towers=tuple(self.towers),
            certificates_of="text model" if self.towers else None,
            grid=self.grid if self.grid and self.grid.on_grid else None,
            conversion=self.conversion,
            smoothing=self.smoothing,
            tokens_without_row=tokens_without_row(self.checkpoint),
        )

    def finalize(self, folder: Path) -> Manifest:
        """Write card, notice and manifest, and hash every file: the folder is an artifact."""
        return finalize(folder, self.manifest(), original_card=self.checkpoint.provenance.card)


def tokens_without_row(checkpoint: Checkpoint) -> TokensWithoutRow | None:
    """The tokens that lie beyond the embedding, as in some published models."""
    rows = checkpoint.shape(EMBEDDING)[0]
    beyond = {i: t[:50] for t, i in checkpoint.tokenizer().get_vocab().items() if i >= rows}
    if not beyond:
        return None
    first = [beyond[index] for index in sorted(beyond)[:_LISTED]]
    return TokensWithoutRow(count=len(beyond), first=tuple(first))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide bytes, without the accelerator they are built for."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def write_config(
    folder: Path, config: Mapping[str, Any], tokenizer_files: Mapping[str, bytes]
) -> None:
    """Write config.json and the tokenizer's files; OutputError where the disk refuses."""
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {**tokenizer_files, "config.json": text.encode()}.items():
        try:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        except OSError as error:
            raise OutputError(f"{folder / name}: {error.strerror}.") from error


def _calibration_record(windows: TokenWindows | None) -> CalibrationRecord | None:
    if windows is None:
        return None
    count, seq_len = windows.ids.shape
    return CalibrationRecord(
        name=windows.name, windows=count, seq_len=seq_len, digest=windows.digest
    )
