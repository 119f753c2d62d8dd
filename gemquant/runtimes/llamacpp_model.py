"""A GGUF loaded by llama.cpp, and token ids on their way through it."""

from __future__ import annotations

import ctypes
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.runtimes.llamacpp_library import Batch, complaints, library

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_ALL_LAYERS = -1
_DESCRIPTION_BYTES = 256


def gguf_file(path: Path) -> Path:
    """Return the GGUF to load: a file itself, or a folder's only one or first part.

    ArtifactError where a folder has none, has several that are no parts of one, or lacks a part.
    """
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1 and not _PART.search(found[0].name):
        return found[0]
    names = {file.name for file in found}
    firsts = [file for file in found if (part := _PART.search(file.name)) and int(part[1]) == 1]
    if len(firsts) != 1:
        listed = ", ".join(sorted(names)) or "none"
        raise ArtifactError(f"{path}: one GGUF, or the parts of one, is expected; found: {listed}.")
    stem, _, count = firsts[0].name.rpartition("-00001-of-")
    parts = {f"{stem}-{n:05}-of-{count}" for n in range(1, int(count[:5]) + 1)}
    if parts != names:
        lacking = ", ".join(sorted(parts - names)) or "none"
        besides = ", ".join(sorted(names - parts)) or "none"
        raise ArtifactError(f"{path}: parts missing: {lacking}; files besides: {besides}.")
    return firsts[0]


class LlamaModel:
    """Weights and vocabulary, loaded whole; freed when the last reference to it goes.

    vocabulary: tokens; a row of logits has as many. description: in llama.cpp's words.
    """

    def __init__(self, path: Path, *, gpu: bool) -> None:
        """Load a GGUF, onto the GPU with all its layers or onto the processor.

        ArtifactError where llama.cpp refuses it; UnsupportedError where a GPU is asked of a build
        that knows none.
        """
        self.lib = library()
        if gpu and not self.lib.llama_supports_gpu_offload():
            raise UnsupportedError(
                "This build of llama.cpp computes on the processor only.",
                hint="--device cpu",
            )
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if gpu else 0
        complaints.clear()
        self.handle = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            said = " ".join(complaints) or "it does not say why"
            raise ArtifactError(f"llama.cpp refuses {path}: {said}")
        weakref.finalize(self, self.lib.llama_model_free, self.handle)
        self._vocab = self.lib.llama_model_get_vocab(self.handle)
        self.vocabulary = int(self.lib.llama_vocab_n_tokens(self._vocab))
        text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        self.lib.llama_model_desc(self.handle, text, _DESCRIPTION_BYTES)
        self.description = text.value.decode("utf-8", errors="replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends generation."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))


@dataclass(frozen=True)
class ContextSize:
    """tokens: in one sequence. batch: at once. outputs: positions of a batch that give logits."""

    tokens: int
    batch: int
    outputs: int


class LlamaContext:
    """One sequence of tokens and its key-value cache; close it, or use it in ``with``."""

    def __init__(self, model: LlamaModel, size: ContextSize, *, threads: int) -> None:
        """Allocate; UnsupportedError where llama.cpp cannot, or allocates other than asked."""
        self._model, self._lib, self._size = model, model.lib, size
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = size.tokens, size.batch, size.batch
        params.n_outputs_max = params.n_outputs_max_per_seq = size.outputs
        params.n_threads = params.n_threads_batch = threads
        complaints.clear()
        handle = self._lib.llama_init_from_model(model.handle, params)
        if not handle:
            said = " ".join(complaints) or "it does not say why"
            raise UnsupportedError(f"llama.cpp cannot run {size.tokens} tokens: {said}")
        self._handle: Any = handle
        made = {
            name: getattr(self._lib, f"llama_{name}")(handle)
            for name in ("n_batch", "n_ubatch", "n_threads", "n_threads_batch")
        }
        asked = (size.batch, size.batch, threads, threads)
        if tuple(made.values()) != asked or self._lib.llama_n_ctx(handle) < size.tokens:
            self.close()
            raise UnsupportedError(f"llama.cpp was asked for {asked}, and made {made}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; logits that were returned are gone."""
        if self._handle:
            self._lib.llama_free(self._handle)
            self._handle = None

    def clear(self) -> None:
        """Forget the sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)

    def keep(self, tokens: int) -> bool:
        """Forget the sequence but for its first tokens; say whether that could be done."""
        memory = self._lib.llama_get_memory(self._handle)
        return bool(self._lib.llama_memory_seq_rm(memory, 0, tokens, -1))

    def decode(
        self, ids: npt.NDArray[np.int32], *, start: int, outputs: int
    ) -> npt.NDArray[np.float32]:
        """Append tokens (n,) at position ``start``; return logits of the last ``outputs`` of them.

        Returns (outputs, vocabulary) float32, softcap included, in llama.cpp's own memory: it is
        overwritten by the next call. ArtifactError where llama.cpp fails.
        """
        count = len(ids)
        if not (0 < count <= self._size.batch and start + count <= self._size.tokens):
            raise ValueError(f"{count} tokens at {start} do not fit {self._size}")
        if not 0 < outputs <= min(count, self._size.outputs):
            raise ValueError(f"{outputs} outputs of {count} tokens do not fit {self._size}")
        if int(ids.min()) < 0 or int(ids.max()) >= self._model.vocabulary:
            raise ArtifactError(f"token ids reach {int(ids.max())}; llama.cpp knows fewer.")
        tokens = np.ascontiguousarray(ids, dtype=np.int32)
        positions = np.arange(start, start + count, dtype=np.int32)
        sequence = np.zeros(1, dtype=np.int32)
        sequences = np.full(count, sequence.ctypes.data, dtype=np.uintp)
        counts = np.ones(count, dtype=np.int32)
        wanted = np.zeros(count, dtype=np.int8)
        wanted[-outputs:] = 1
        batch = Batch(
            n_tokens=count,
            token=tokens.ctypes.data,
            pos=positions.ctypes.data,
            n_seq_id=counts.ctypes.data,
            seq_id=sequences.ctypes.data,
            logits=wanted.ctypes.data,
        )
        code = self._lib.llama_decode(self._handle, batch)
        logits = self._lib.llama_get_logits(self._handle) if code == 0 else None
        if not logits:
            raise ArtifactError(f"llama.cpp fails with {code}: {' '.join(complaints)}")
        return np.ctypeslib.as_array(logits, shape=(outputs, self._model.vocabulary))
