"""A model as far as its configuration tells; weights are neither read nor downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.folder import read_raw_config
from gemquant.formats.checkpoint.hub import download, parse_hub_reference
from gemquant.models.config import text_config


@dataclass(frozen=True)
class Headers:
    """ref: as the user gave it. config: the flat text configuration, every key present."""

    ref: str
    config: Mapping[str, Any]


def read_headers(ref: str) -> Headers:
    """Read a model's configuration; of a Hub id and of a folder config.json is enough."""
    path = Path(ref).expanduser()
    if path.is_dir():
        return Headers(ref, text_config(read_raw_config(path)))
    reference = parse_hub_reference(ref)
    if reference is not None and not path.exists() and not ref.lower().endswith(".gguf"):
        folder = download(*reference, files=("config.json",))
        return Headers(ref, text_config(read_raw_config(folder)))
    return Headers(ref, open_checkpoint(ref).config)
