"""From what the user typed to an open checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemquant.errors import CheckpointError, ProblemCollector
from gemquant.formats.checkpoint.checkpoint import Checkpoint
from gemquant.formats.checkpoint.folder import FolderTensors, read_raw_config
from gemquant.formats.checkpoint.hub import (
    ADAPTER_FILES,
    MODEL_FILES,
    download,
    parse_hub_reference,
)
from gemquant.formats.checkpoint.lora import LoraAdapter, open_lora
from gemquant.formats.checkpoint.provenance import Provenance, folder_provenance, gguf_provenance
from gemquant.formats.checkpoint.sample import assembled, sample_named
from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files
from gemquant.formats.gguf.source import GgufTensors
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.models.architecture import architecture_of
from gemquant.models.config import text_config

T = TypeVar("T")

_SAMPLE = "sample:"


def open_checkpoint(ref: str, *, lora: str | None = None) -> Checkpoint:
    """Open a Gemma; only headers, configuration and tokenizer are read.

    ref: a folder, a ``.gguf`` file, a Hub id ``OWNER/NAME[@REVISION]``, or
    ``sample:gemma-3-270m``. lora: folder or Hub id of a PEFT adapter, merged while reading.

    Raises a GemquantError with every problem that headers and configuration show.
    """
    try:
        return _open(ref, lora)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or ref}: cannot be read: {error.strerror or error}."
        ) from error


def _open(ref: str, lora: str | None) -> Checkpoint:
    if ref.startswith(_SAMPLE):
        sample = sample_named(ref.removeprefix(_SAMPLE))
        origin = Provenance(sample.base_model, sample.license, None)
        return _open_gguf(assembled(sample), ref, lora, origin)
    path = Path(ref).expanduser()
    if path.is_dir():
        return _open_folder(path, ref, None, lora)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _open_gguf(path, ref, lora, None)
        raise CheckpointError(
            f"{ref} is a file, and not a .gguf.",
            hint=f"Open its folder: {path.parent}",
        )
    folder, revision = _from_hub(ref, MODEL_FILES)
    return _open_folder(folder, ref, revision, lora)


def _from_hub(ref: str, files: tuple[str, ...]) -> tuple[Path, str]:
    reference = parse_hub_reference(ref)
    if reference is None or ref.lower().endswith(".gguf"):
        raise CheckpointError(
            f"{ref}: no such file or folder.",
            hint="Give a folder, a FILE.gguf, a Hub id such as google/gemma-2-2b, or "
            "sample:gemma-3-270m.",
        )
    folder = download(*reference, files=files)
    return folder, folder.name


def _open_folder(folder: Path, ref: str, revision: str | None, lora: str | None) -> Checkpoint:
    raw = read_raw_config(folder)
    config = text_config(raw)
    problems = ProblemCollector()
    provenance = folder_provenance(folder, raw, assumed_license=architecture_of(config).license)
    tensors = problems.attempt(lambda: FolderTensors(folder, config))
    tokenizer = problems.attempt(lambda: read_tokenizer_files(folder))
    adapter = problems.attempt(lambda: _adapter(lora, config, provenance))
    problems.refuse()
    return Checkpoint(
        ref, revision, config, provenance, tensors.value, tokenizer.value, adapter.value
    )


def _open_gguf(path: Path, ref: str, lora: str | None, origin: Provenance | None) -> Checkpoint:
    tensors = GgufTensors(path)
    provenance = origin or gguf_provenance(path, tensors.metadata)
    problems = ProblemCollector()
    tokenizer = problems.attempt(lambda: GgufTokenizer(tensors.metadata, ref))
    adapter = problems.attempt(lambda: _adapter(lora, tensors.config, provenance))
    problems.refuse()
    return Checkpoint(
        ref, None, tensors.config, provenance, tensors, tokenizer.value, adapter.value
    )


def _adapter(
    lora: str | None, config: Mapping[str, Any], provenance: Provenance
) -> LoraAdapter | None:
    if lora is None:
        return None
    folder = Path(lora).expanduser()
    if not folder.is_dir():
        folder, _ = _from_hub(lora, ADAPTER_FILES)
    return open_lora(folder, config, base_model=provenance.base_model)
