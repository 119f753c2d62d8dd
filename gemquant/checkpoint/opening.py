"""From what the user typed to an open checkpoint."""

from __future__ import annotations

from pathlib import Path

from gemquant.checkpoint.checkpoint import Checkpoint
from gemquant.checkpoint.folder import FolderTensors, read_raw_config
from gemquant.checkpoint.provenance import folder_provenance
from gemquant.checkpoint.tokenizer_files import read_tokenizer_files
from gemquant.errors import CheckpointError, GemquantError, refuse
from gemquant.gemma.config import text_config


def open_checkpoint(ref: str, *, lora: str | None = None) -> Checkpoint:  # noqa: ARG001
    """Open a Gemma; only headers, configuration and tokenizer are read.

    ref: a folder.
    """
    folder = Path(ref)
    if not folder.is_dir():
        raise CheckpointError(f"{ref}: no such folder.")
    return open_folder(folder, ref=ref, revision=None)


def open_folder(folder: Path, *, ref: str, revision: str | None) -> Checkpoint:
    """Open a folder of safetensors; every problem of weights and tokenizer is raised at once."""
    raw = read_raw_config(folder)
    config = text_config(raw)
    problems: list[GemquantError] = []
    try:
        tensors = FolderTensors(folder, config)
    except GemquantError as error:
        problems.append(error)
    try:
        tokenizer = read_tokenizer_files(folder)
    except GemquantError as error:
        problems.append(error)
    refuse(problems)
    return Checkpoint(ref, revision, config, folder_provenance(folder, raw), tensors, tokenizer)
