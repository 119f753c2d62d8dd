"""An RKLLM artifact: the manifest of a converted file, and the checks of its beginning and size.

The file format is not published, so only the vendor's runtime on a board can read the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gemquant.convert.candidates import linear_bytes, stored_bytes, table_size
from gemquant.convert.finalize import ArtifactFacts
from gemquant.core.artifact import (
    Artifact,
    CallRecord,
    ConversionRecord,
    Manifest,
    SmoothingRecord,
    finalize,
    staged,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.json_document import Record
from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec
from gemquant.core.recipe import Recipe
from gemquant.core.targets import conversion_problems, converted_problems
from gemquant.core.untrusted import UntrustedFile
from gemquant.core.weights import AffineScheme
from gemquant.errors import ArtifactError, UsageError, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import linear_shapes, tensor_shapes
from gemquant.models.structure import EMBEDDING, PER_LAYER_TABLE
from gemquant.rockchip.board_rkllm import CONTAINER, SUFFIX
from gemquant.rockchip.options import Conversion

if TYPE_CHECKING:
    from gemquant.calibration.windows import TokenWindows

LEAST = 0.9
EXACT = 0.05
PREPARED, ANSWER = "prepared.json", "converted.json"
_LIMIT_BYTES = 64_000_000
TOKENIZER_BYTES = 64
"""Upper bound for each token of the vocabulary: its text, score and type."""


def file_problems(
    path: Path, conversion: Conversion, config: Mapping[str, Any]
) -> Iterator[ArtifactError]:
    """Compare a converted file with what its release writes for such a model."""
    bounds = size_range(conversion, config)
    return converted_problems(path, conversion.release.magic, bounds, conversion.dtype.name)


def size_range(conversion: Conversion, config: Mapping[str, Any]) -> tuple[int, int]:
    """Smallest and largest plausible file, in bytes.

    Tight if the release's files were measured, else wide: from nine tenths of the linears to
    everything with tables and head in float32.
    """
    release, dtype = conversion.release, conversion.dtype
    tokenizer = TOKENIZER_BYTES * int(config["vocab_size"]) + 100_000
    if release.head_bits is not None and not conversion.options.hybrid_rate:
        planned = stored_bytes(config, dtype, release)
        return int(planned * (1 - EXACT)), int(planned * (1 + EXACT)) + tokenizer
    linears = linear_bytes(config, dtype)
    tables = 8 * table_size(config, EMBEDDING, PER_LAYER_TABLE)
    return int(LEAST * linears), int(1.3 * linears) + tables + tokenizer


class ConvertResult(Record):
    """The result of ``programs/rkllm_convert.py``."""

    calls: tuple[CallRecord, ...]
    python: str
    versions: dict[str, str]

    @property
    def libraries(self) -> dict[str, str]:
        """The versions as a manifest lists them."""
        versions = sorted(self.versions.items())
        return {f"toolkit: {name}": version.partition("+")[0] for name, version in versions}


class PreparedRecord(Record):
    """What a prepared folder knows of its artifact. manifest: but for what converting decides.

    file: the converted file's name. weights: how many the model has. card: the original's.
    """

    manifest: Manifest
    file: str = Field(pattern=r"^[^/\\]+\.rkllm$")
    weights: int = Field(gt=0)
    card: str | None


def rkllm_manifest(
    recipe: Recipe,
    conversion: Conversion,
    checkpoint: Checkpoint,
    result: ConvertResult,
    *,
    file_bytes: int,
    windows: TokenWindows | None,
    smoothing: SmoothingRecord | None,
    certificates: tuple[LevelEvaluation, ...],
) -> Manifest:
    """Describe a converted file. windows: calibration text of GPTQ codes or SmoothQuant scales."""
    least, most = size_range(conversion, checkpoint.config)
    return ArtifactFacts(
        checkpoint=checkpoint,
        recipe=recipe,
        container=CONTAINER,
        quantizer=CONTAINER,
        layout=_layout(conversion, checkpoint.config),
        float_dtype="float16",
        file_bytes=file_bytes,
        calibration=windows,
        conversion=ConversionRecord(
            tool=conversion.toolkit.name,
            version=conversion.release.version,
            python=result.python,
            platform=conversion.npu.platform,
            dtype=conversion.dtype.name,
            runtime=conversion.release.version,
            driver=conversion.release.driver,
            calls=result.calls,
            least_bytes=least,
            most_bytes=most,
        ),
        smoothing=smoothing,
        certificates=certificates,
        libraries=result.libraries,
    ).manifest()


def prepared_record(folder: Path, hint: str | None = None) -> PreparedRecord:
    """Read what a prepared folder will become; UsageError with the hint where that fails."""
    return UntrustedFile(folder / PREPARED, _LIMIT_BYTES, UsageError, hint).record(PreparedRecord)


def seal(folder: Path, file: Path, out: Path | None, *, force: bool) -> Artifact:
    """Make an artifact of a file that ``convert.py`` made of a prepared folder, on any machine."""
    hint = f"FOLDER is that of --prepare-only: gemquant rkllm FOLDER --converted {file}"
    record = prepared_record(folder, hint)
    prepared = record.manifest.conversion
    if prepared is None:
        raise UsageError(f"{folder / PREPARED}: its manifest has no conversion.", hint=hint)
    if not file.is_file():
        raise UsageError(f"--converted {file}: no such file.")
    place = file.parent if (file.parent / ANSWER).is_file() else folder
    hint = f"convert.py writes it; bring it back with the file, into {folder}."
    result = UntrustedFile(place / ANSWER, _LIMIT_BYTES, UsageError, hint).record(ConvertResult)
    if result.calls != prepared.calls:
        raise ArtifactError(
            f"{place / ANSWER}: not the calls of {folder / 'job.json'}.",
            hint="The file was made from another folder.",
        )
    found = result.versions.get(prepared.tool, "none").partition("+")[0]
    if found != prepared.version:
        raise ArtifactError(
            f"{file}: converted by {prepared.tool} {found}, prepared for {prepared.version}.",
            hint="Prepare again with --toolkit-version, or convert with that release.",
        )
    size, quantization = file.stat().st_size, record.manifest.quantization
    manifest = record.manifest.model_copy(
        update={
            "quantization": quantization.model_copy(
                update={"bits_per_weight": 8 * size / record.weights}
            ),
            "conversion": prepared.model_copy(update={"python": result.python}),
            "libraries": {**record.manifest.libraries, **result.libraries},
        }
    )
    out = out or Path(record.file.removesuffix(SUFFIX))
    with staged(out, force=force, needed_bytes=size) as scratch:
        shutil.copyfile(file, scratch / record.file)
        complete = finalize(scratch, manifest, original_card=record.card)
        refuse(conversion_problems(scratch, complete))
    return Artifact.open(out)


def _layout(conversion: Conversion, config: Mapping[str, Any]) -> Layout:
    """The requested scheme of each linear; the toolkit does not tell which a hybrid rate picks."""
    import torch

    dtype = conversion.dtype
    scheme = AffineScheme(dtype.weight_bits, dtype.group_size, symmetric=True)
    linears = linear_shapes(config)
    return {
        name: QuantizedSpec(linears[name], scheme)
        if name in linears
        else PlainSpec(shape, torch.float16)
        for name, shape in tensor_shapes(config).items()
    }
