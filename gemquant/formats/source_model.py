"""A model's name, licence, configuration and tokenizer, for formats that hold a whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.checkpoint.provenance import Provenance
from gemquant.formats.checkpoint.tokenizer_files import with_chat_template
from gemquant.formats.gguf.values import Metadata
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import choose_template


@dataclass(frozen=True, eq=False)
class Origin:
    """A model's name, terms, configuration and tokenizer, as an artifact is to carry them.

    chosen_template: the requested chat template, or None for the checkpoint's.
    """

    checkpoint: Checkpoint = field(repr=False)
    chosen_template: str | None = None

    @property
    def name(self) -> str:
        """The model's name, fit for the name of a file."""
        return model_name(self.checkpoint.ref)

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's own configuration."""
        return self.checkpoint.config

    @property
    def whole_config(self) -> Mapping[str, Any]:
        """``config.json`` as published, of a multimodal checkpoint; otherwise empty."""
        return {} if self.checkpoint.towers is None else self.checkpoint.towers.config

    @property
    def provenance(self) -> Provenance:
        """Where it comes from and under which terms."""
        return self.checkpoint.provenance

    @property
    def gguf_metadata(self) -> Metadata | None:
        """The metadata of the GGUF that it was read from, where it was."""
        return self.checkpoint.gguf_metadata

    @cached_property
    def template(self) -> str | None:
        """The text of the requested chat template."""
        if self.chosen_template is None:
            return None
        return choose_template(
            self.chosen_template,
            self.checkpoint.chat_template(),
            architecture_of(self.checkpoint.config).chat,
        )

    @cached_property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Tokenizer files by name, with the chosen chat template in them."""
        files = self.checkpoint.tokenizer_files()
        return files if self.template is None else with_chat_template(files, self.template)


def model_name(ref: str) -> str:
    """Name a model after what the user typed.

    >>> model_name("google/gemma-2-2b@main"), model_name("my models/gemma.gguf")
    ('gemma-2-2b', 'gemma')
    """
    name = ref.removeprefix("sample:").partition("@")[0].rstrip("/").rpartition("/")[2]
    if name in {"", ".", ".."}:
        name = Path(ref).resolve().name
    return re.sub(r"[^\w.-]+", "-", name.removesuffix(".gguf")) or "model"
