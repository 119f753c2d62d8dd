"""Whether a converted file can be what it is said to be: its beginning and its size.

The format is not published, so that nothing more is known of it here; the vendor's runtime on a
board is what reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from sys import maxsize
from typing import Any

from gemquant.convert.estimate.candidate import table_size
from gemquant.convert.estimate.npu import linear_bytes, stored_bytes
from gemquant.core.artifact import Manifest
from gemquant.core.targets.toolkit import load_toolkit
from gemquant.errors import ArtifactError
from gemquant.rockchip.rkllm_rules import Conversion

SUFFIX = ".rkllm"
LEAST = 0.9
EXACT = 0.05
TOKENIZER_BYTES = 64
"""For each token of the vocabulary, generously: its text, score and type."""


def file_problems(
    path: Path, conversion: Conversion, config: Mapping[str, Any]
) -> list[ArtifactError]:
    """Compare a file with what its release writes of such a model."""
    bounds = size_range(conversion, config)
    return _problems(path, conversion.release.magic, bounds, conversion.dtype.name)


def sealed_problems(folder: Path, manifest: Manifest) -> list[ArtifactError]:
    """Compare a finished artifact's file with what its manifest says of it."""
    record = manifest.conversion
    if record is None:
        return [ArtifactError(f"{folder}: the manifest says nothing of a conversion.")]
    names = [name for name in manifest.files if name.endswith(SUFFIX)]
    if len(names) != 1:
        return [ArtifactError(f"{folder} has {len(names)} files *{SUFFIX}, not one.")]
    release = load_toolkit(record.tool).version(record.version)
    magic = None if release is None else release.magic
    bounds = (record.least_bytes or 0, record.most_bytes or maxsize)
    return _problems(folder / names[0], magic, bounds, record.dtype)


def _problems(
    path: Path, magic: str | None, bounds: tuple[int, int], dtype: str
) -> list[ArtifactError]:
    size = path.stat().st_size
    with path.open("rb") as file:
        begins = file.read(4).hex()
    problems = []
    if magic is not None and begins != magic:
        problems.append(
            ArtifactError(f"{path.name} begins with {begins}, not with {magic} as RKLLM files do.")
        )
    if not bounds[0] <= size <= bounds[1]:
        problems.append(
            ArtifactError(
                f"{path.name} has {size} bytes; {bounds[0]} to {bounds[1]} were to be expected of "
                f"{dtype}."
            )
        )
    return problems


def size_range(conversion: Conversion, config: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes that a file may have. Close where the release's files were measured, else wide:
    from nine tenths of the linears to everything with embedding and head in float32.
    """
    release, dtype = conversion.release, conversion.dtype
    tokenizer = TOKENIZER_BYTES * int(config["vocab_size"]) + 100_000
    if release.head_bits is not None and not conversion.options.hybrid_rate:
        planned = stored_bytes(config, dtype, release)
        return int(planned * (1 - EXACT)), int(planned * (1 + EXACT)) + tokenizer
    linears = linear_bytes(config, dtype)
    return int(LEAST * linears), int(1.3 * linears) + 8 * table_size(config) + tokenizer
