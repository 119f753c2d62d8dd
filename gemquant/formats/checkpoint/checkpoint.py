"""A read-only Gemma, whatever file it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gemquant.formats.checkpoint.lora import LoraAdapter
from gemquant.formats.checkpoint.provenance import Provenance
from gemquant.formats.checkpoint.source import TensorSource, require_finite
from gemquant.formats.checkpoint.tokenizer_files import TokenizerSource
from gemquant.formats.gguf.source import GgufTensors
from gemquant.formats.gguf.values import Metadata
from gemquant.models.architecture import tensor_shapes
from gemquant.models.chat import SpecialTokens


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Gemma's text model: configuration and tokenizer in memory, tensors left in their files.

    ref: as the user gave it. revision: the commit of a Hub checkpoint, otherwise None.
    config: the flat text configuration in transformers 5's spelling, every key present.
    """

    ref: str
    revision: str | None
    config: Mapping[str, Any]
    provenance: Provenance
    source: TensorSource = field(repr=False)
    tokenizer_source: TokenizerSource = field(repr=False)
    adapter: LoraAdapter | None = field(default=None, repr=False)

    def names(self) -> Sequence[str]:
        """Names of all tensors, in the order of the forward pass; a tied head is none."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        return self._shapes[name]

    def stored_dtype(self, name: str) -> torch.dtype:
        """The floating-point type that holds the tensor without loss.

        float32 for what is decoded from a packed type or has an adapter merged into it.
        """
        if self.adapter is not None and self.adapter.changes(name):
            return torch.float32
        return self.source.stored_dtype(name)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in its stored type or in ``dtype``, with the adapter merged in float32.

        It may alias the mapped file: do not write to it. Raises CheckpointError for NaN and Inf.
        """
        return self.rows(name, 0, self._shapes[name][0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a matrix, or elements of a vector, as ``tensor`` does."""
        if dtype is None:
            dtype = self.stored_dtype(name)
        if self.adapter is not None and self.adapter.changes(name):
            base = self.source.read(name, start, stop, torch.float32)
            result = self.adapter.merged_rows(name, base, start).to(dtype)
        else:
            result = self.source.read(name, start, stop, dtype)
        require_finite(result, f"{self.ref}: {name}")
        return result

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; encode with ``add_special_tokens=False`` to get no BOS."""
        return self.tokenizer_source.tokenizer

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Files to write into an artifact, by name: tokenizer.json and what came with it."""
        return dict(self.tokenizer_source.files)

    def chat_template(self) -> str | None:
        """Jinja source of the chat template, if the checkpoint has one."""
        return self.tokenizer_source.chat_template

    def special_tokens(self) -> SpecialTokens:
        """Special tokens of the tokenizer, as variables of a chat template."""
        return self.tokenizer_source.special_tokens(self.config)

    @property
    def gguf_metadata(self) -> Metadata | None:
        """The metadata of a GGUF, with types; None where the model is no GGUF."""
        return self.source.typed_metadata if isinstance(self.source, GgufTensors) else None

    def blocks(self, name: str, kind: str, start: int, stop: int) -> Tensor | None:
        """Rows as a GGUF stores them, (rows, bytes) uint8, where that is ggml's format ``kind``.

        None for any other format, and for what an adapter is merged into.
        """
        adapted = self.adapter is not None and self.adapter.changes(name)
        if adapted or not isinstance(self.source, GgufTensors):
            return None
        return self.source.blocks(name, start, stop) if self.source.kind(name) == kind else None

    @property
    def packed_formats(self) -> Sequence[str]:
        """Formats of matrices that were quantized before, by ggml's names."""
        if not isinstance(self.source, GgufTensors):
            return ()
        kinds = {self.source.kind(name) for name in self.source.shapes}
        return sorted(kinds - {"F32", "F16", "BF16"})

    def source_digest(self) -> dict[str, str]:
        """SHA-256 of every weight file, by name; of the adapter's with ``lora/`` before it."""
        return dict(self._digests)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return tensor_shapes(self.config)

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        digests = {path.name: _sha256(path) for path in self.source.files}
        if self.adapter is not None:
            digests |= {f"lora/{path.name}": _sha256(path) for path in self.adapter.files}
        return digests


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
