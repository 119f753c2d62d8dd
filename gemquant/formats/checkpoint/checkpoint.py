"""A read-only Gemma, and how it is opened: a folder, a Hub id, a GGUF file or the sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gemquant.core.untrusted import sha256_of, user_path
from gemquant.errors import CheckpointError, GemquantError, ProblemCollector
from gemquant.formats.checkpoint.folder import FolderTensors, read_raw_config
from gemquant.formats.checkpoint.hub import ADAPTER_FILES, MODEL_FILES, download
from gemquant.formats.checkpoint.lora import Adapters, LoraAdapter, open_lora, weighted
from gemquant.formats.checkpoint.provenance import (
    Provenance,
    folder_provenance,
    gguf_provenance,
    is_same_model,
)
from gemquant.formats.checkpoint.recognition import (
    SAMPLE,
    check_place,
    hub_reference,
    meant,
)
from gemquant.formats.checkpoint.sample import assembled, sample_named
from gemquant.formats.checkpoint.sentence import SentenceModules, with_modules
from gemquant.formats.checkpoint.source import TensorSource, require_finite
from gemquant.formats.checkpoint.tokenizer_files import (
    TokenizerSource,
    adapted_tokenizer,
    read_tokenizer_files,
)
from gemquant.formats.checkpoint.towers import Towers
from gemquant.formats.gguf.source import GgufTensors
from gemquant.formats.gguf.tokenizer import GgufTokenizer
from gemquant.formats.gguf.values import Metadata
from gemquant.models.architecture import architecture_of, tensor_shapes
from gemquant.models.chat import SpecialTokens
from gemquant.models.config import architecture_of_file, corrections, text_config
from gemquant.models.structure import EMBEDDING, HEAD

_log = logging.getLogger(__name__)


def open_checkpoint(ref: str, *, lora: Sequence[str] = ()) -> Checkpoint:
    """Open a Gemma; only headers, configuration and tokenizer are read.

    ref: a folder, a ``.gguf`` file, a Hub id ``OWNER/NAME[@REVISION]``, or
    ``sample:gemma-3-270m``. lora: folders or Hub ids of adapters, with ``=WEIGHT`` or without,
    merged one after the other while reading.

    Raises a GemquantError with every problem that headers and configuration show.
    """
    try:
        return _open(ref, lora)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or ref}: cannot be read: {error.strerror or error}."
        ) from error


def _open(ref: str, lora: Sequence[str]) -> Checkpoint:
    check_place(ref)
    if ref.startswith(SAMPLE):
        sample = sample_named(ref.removeprefix(SAMPLE))
        origin = Provenance(sample.base_model, sample.license, None)
        return _open_gguf(assembled(sample), ref, lora, origin)
    path = user_path(ref)
    if path.is_dir():
        return _open_folder(path, ref, None, lora)
    if path.is_file():
        return _open_gguf(path, ref, lora, None)
    folder, revision = _from_hub(ref, MODEL_FILES)
    return _open_folder(folder, ref, revision, lora)


def _from_hub(ref: str, files: tuple[str, ...]) -> tuple[Path, str]:
    reference = hub_reference(ref)
    try:
        folder = download(*reference, files=files)
    except CheckpointError as error:
        hints = [hint for hint in (meant(ref), error.hint) if hint is not None]
        raise CheckpointError(error.message, hint=". Otherwise: ".join(hints) or None) from error
    return folder, folder.name


def _open_folder(folder: Path, ref: str, revision: str | None, lora: Sequence[str]) -> Checkpoint:
    raw, modules = read_raw_config(folder), None
    if architecture_of_file(raw).embeds:
        raw, modules = with_modules(folder, raw)
    raw = _without_leftover(folder, raw, modules)
    config: Mapping[str, Any] = text_config(raw)
    for correction in corrections(config).values():
        _log.warning("%s: %s", folder, correction)
    problems = ProblemCollector()
    provenance = folder_provenance(
        folder, raw, assumed_license=architecture_of(config).licence.name
    )
    tensors = problems.attempt(
        lambda: FolderTensors(folder, config, modules, raw.get("quantization_config"))
    )
    tokenizer = problems.attempt(lambda: read_tokenizer_files(folder))
    known = tensors.value.config if tensors.succeeded else config
    adapters = problems.attempt(lambda: _adapters(lora, known, ref, provenance))
    problems.refuse()
    towers = tensors.value.towers(folder, raw)
    plain = Checkpoint(
        ref, revision, known, provenance, tensors.value, tokenizer.value, towers, modules=modules
    )
    return _adapted(plain, adapters.value)


def _open_gguf(path: Path, ref: str, lora: Sequence[str], origin: Provenance | None) -> Checkpoint:
    tensors = GgufTensors(path)
    licence = architecture_of(tensors.config).licence
    provenance = origin or gguf_provenance(path, tensors.metadata, assumed_license=licence.name)
    problems = ProblemCollector()
    tokenizer = problems.attempt(lambda: GgufTokenizer(tensors.metadata, ref))
    adapters = problems.attempt(lambda: _adapters(lora, tensors.config, ref, provenance))
    problems.refuse()
    plain = Checkpoint(ref, None, tensors.config, provenance, tensors, tokenizer.value)
    return _adapted(plain, adapters.value)


def _without_leftover(
    folder: Path, raw: dict[str, Any], modules: SentenceModules | None
) -> dict[str, Any]:
    """Leave out a ``quantization_config`` that remained over weights that are not quantized."""
    key = "quantization_config"
    if key not in raw:
        return raw
    stripped = {name: value for name, value in raw.items() if name != key}
    try:
        FolderTensors(folder, text_config(stripped), modules)
    except GemquantError:
        return raw
    _log.warning("%s: config.json: %s is ignored: the weights are not quantized.", folder, key)
    return stripped


def _adapters(
    lora: Sequence[str], config: Mapping[str, Any], ref: str, provenance: Provenance
) -> Adapters:
    """Open adapters, each for the model with those before it."""
    merged: list[LoraAdapter] = []
    for each in lora:
        name, weight = weighted(each)
        folder = user_path(name)
        if not folder.exists():
            folder, _ = _from_hub(name, ADAPTER_FILES)
        is_base = partial(is_same_model, ref=ref, provenance=provenance)
        merged.append(open_lora(folder, config, is_base=is_base, weight=weight))
        config = merged[-1].config
    return Adapters(merged)


def _adapted(checkpoint: Checkpoint, adapters: Adapters) -> Checkpoint:
    config, tokenizer = checkpoint.config, checkpoint.tokenizer_source
    for adapter in adapters.merged:
        config, tokenizer = adapter.config, adapted_tokenizer(adapter.folder, tokenizer)
    return replace(checkpoint, config=config, tokenizer_source=tokenizer, adapters=adapters)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Gemma: configuration and tokenizer in memory, tensors left in their files.

    Its methods are of the text model; ``towers`` has the rest.

    ref: as the user gave it. revision: the commit of a Hub checkpoint, otherwise None.
    config: the flat text configuration in transformers 5's spelling, every key present.
    towers: what a multimodal checkpoint has besides its text model. modules: of an embedding model,
    sentence-transformers' files; None where it comes from a GGUF.
    """

    ref: str
    revision: str | None
    config: Mapping[str, Any]
    provenance: Provenance
    source: TensorSource = field(repr=False)
    tokenizer_source: TokenizerSource = field(repr=False)
    towers: Towers | None = field(default=None, repr=False)
    adapters: Adapters = field(default=Adapters(()), repr=False)
    modules: SentenceModules | None = field(default=None, repr=False)

    def names(self) -> Sequence[str]:
        """Names of all tensors, in the order of the forward pass; without a tied head."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        return self._shapes[name]

    def stored_dtype(self, name: str) -> torch.dtype:
        """The floating-point type that holds the tensor without loss.

        float32 for packed types and for tensors with a merged adapter.
        """
        if self.adapters.changes(name):
            return torch.float32
        return self.source.stored_dtype(self._stored(name))

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in its stored type or in ``dtype``, with the adapter merged in float32.

        Raises CheckpointError for NaN and Inf, and SourceLostError where a file became shorter.
        """
        return self.rows(name, 0, self._shapes[name][0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a matrix, or elements of a vector, as ``tensor`` does."""
        if dtype is None:
            dtype = self.stored_dtype(name)
        if self.adapters.changes(name):
            read = partial(self.source.read, self._stored(name), dtype=torch.float32)
            result = self.adapters.merged_rows(name, start, stop, read).to(dtype)
        else:
            result = self.source.read(self._stored(name), start, stop, dtype)
        require_finite(result, f"{self.ref}: {name}")
        return result

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; encode with ``add_special_tokens=False`` to get no BOS."""
        return self.tokenizer_source.tokenizer

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Files to write into an artifact, by name: tokenizer.json and what came with it."""
        return dict(self.tokenizer_source.files)

    @property
    def prompts(self) -> Mapping[str, str]:
        """What an embedding model reads before queries and documents; empty for other models."""
        usual = architecture_of(self.config).prompts
        own = {} if self.modules is None else self.modules.prompts
        return {purpose: own.get(purpose, text) for purpose, text in usual.items()}

    def chat_template(self) -> str | None:
        """Jinja source of the chat template, if the checkpoint has one."""
        return self.tokenizer_source.chat_template

    def special_tokens(self) -> SpecialTokens:
        """Special tokens of the tokenizer, as variables of a chat template."""
        return self.tokenizer_source.special_tokens(self.config)

    @property
    def gguf_metadata(self) -> Metadata | None:
        """The metadata of a GGUF, with types; None for other checkpoints and another tokenizer."""
        own = isinstance(self.tokenizer_source, GgufTokenizer)
        return self.source.typed_metadata if own and isinstance(self.source, GgufTensors) else None

    def blocks(self, name: str, kind: str, start: int, stop: int) -> Tensor | None:
        """Rows as a GGUF stores them, (rows, bytes) uint8, where that is ggml's format ``kind``.

        None for any other format, and for tensors with a merged adapter.
        """
        if self.adapters.changes(name) or not isinstance(self.source, GgufTensors):
            return None
        stored = self._stored(name)
        return self.source.blocks(stored, start, stop) if self.source.kind(stored) == kind else None

    @property
    def packed(self) -> Mapping[str, str]:
        """Format of every matrix that is quantized already: ggml's name, or the scheme."""
        return self.source.packed

    def source_digest(self) -> dict[str, str]:
        """SHA-256 of every weight file, by name; of the adapter's with ``lora/`` before it."""
        return dict(self._digests)

    def _stored(self, name: str) -> str:
        """The name in the source; a head that an adapter unties starts as the embedding."""
        return EMBEDDING if name == HEAD and HEAD not in self.source.shapes else name

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return tensor_shapes(self.config)

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        dense = {} if self.modules is None else self.modules.weights
        files = {(f"{p.parent.name}/" if p in dense else "") + p.name: p for p in self.source.files}
        files |= self.adapters.files
        return {name: sha256_of(path) for name, path in files.items()}
