"""llama.cpp, which runs GGUF files: level ``native`` for the container ``gguf``.

Everything from token ids to logits is llama.cpp's: it dequantizes, quantizes activations where its
kernels do, caches keys and values in float16, and applies the softcap.
"""

from __future__ import annotations

import ctypes
import re
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.models.mmproj import is_mmproj
from gemquant.runtimes.llamacpp_library import (
    INSTALL,
    VERSION,
    Batch,
    capture_errors,
    library,
    logged_errors,
    missing,
)
from gemquant.runtimes.runtime import (
    DEFAULTS,
    POSITIONS_AT_ONCE,
    Chunk,
    EmbeddingRuntime,
    LoadOptions,
    LogitsRuntime,
    Requirement,
    SpeedRuntime,
    Timing,
    Window,
    cpu_place,
    likeliest,
)

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_BATCH = 512
"""Prompt tokens at once in a benchmark: llama.cpp's default."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_ALL_LAYERS = -1
_DESCRIPTION_BYTES = 256

Ids = npt.NDArray[np.int32]


class LlamaCpp(LogitsRuntime, EmbeddingRuntime, SpeedRuntime):
    """A loaded GGUF and one sequence at a time."""

    name: ClassVar[str] = "llama.cpp"
    packages: ClassVar[Sequence[str]] = ("xllamacpp",)

    def __init__(self, model: LlamaModel, threads: int, *, gpu: bool) -> None:
        self.model, self.threads = model, threads
        self._context: LlamaContext | None = None
        version = library().llama_version().decode()
        place = "GPU" if gpu else cpu_place(threads)
        self.software = (
            f"llama.cpp {version} of xllamacpp {VERSION}; {model.description} on {place}"
        )

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return the version of xllamacpp whose structures are known, built for the device."""
        del container
        unmet = missing()
        if unmet is None and device != "cpu" and not library().llama_supports_gpu_offload():
            unmet = f"this build of llama.cpp computes on the processor only, not on {device}"
        return Requirement(install=INSTALL, unmet=unmet)

    @classmethod
    def prepare(cls) -> None:
        """Load the library."""
        library()

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a GGUF, or the one in a folder; any device but ``cpu`` takes all layers."""
        cls.require(path, container, "cpu")
        threads = options.threads
        if threads is None:
            import torch

            threads = torch.get_num_threads()
        gpu = options.device != "cpu"
        loaded = cls(LlamaModel(gguf_file(path), gpu=gpu), threads, gpu=gpu)
        if options.max_tokens is not None:
            loaded._sequence(options.max_tokens, PROMPT_BATCH, outputs=1)
        return loaded

    def _sequence(self, tokens: int, batch: int, *, outputs: int) -> LlamaContext:
        """Return an empty context of this size; the last one is reused if it has it."""
        size = ContextSize(tokens, min(batch, tokens), min(outputs, batch, tokens))
        if self._context is None or self._context.size != size:
            if self._context is not None:
                self._context.close()
            self._context = LlamaContext(self.model, size, threads=self.threads)
        self._context.clear()
        return self._context

    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield the wanted logits; the head is not computed for other positions.

        Windows with the same beginning, such as the choices of one question, share it.
        """
        import torch

        if not windows:
            return
        batch = POSITIONS_AT_ONCE
        longest = max(len(window.ids) for window in windows)
        context = self._sequence(longest, batch, outputs=batch)
        previous: tuple[int, ...] = ()
        for number in sorted(range(len(windows)), key=lambda n: windows[n].ids):
            window = windows[number]
            shared = min(_common(previous, window.ids), window.first)
            if shared == 0 or not context.keep(shared):
                context.clear()
                shared = 0
            previous = window.ids
            ids = np.array(window.ids, dtype=np.int32)
            for start in range(shared, len(ids), batch):
                piece = ids[start : start + batch]
                stop = start + len(piece)
                outputs = min(len(piece), stop - window.first)
                rows = context.decode(piece, start=start, outputs=max(outputs, 1))
                if outputs > 0:
                    yield Chunk(number, stop - outputs, torch.from_numpy(rows))

    def embeddings(self, ids: Tensor) -> Tensor:
        """Return llama.cpp's embeddings, pooled and after the Dense modules of the file."""
        import torch

        size = ContextSize(ids.shape[1], ids.shape[1], ids.shape[1], embeds=True)
        context = LlamaContext(self.model, size, threads=self.threads)
        try:
            rows = [context.embedding(window.numpy()) for window in ids.to(torch.int32)]
        finally:
            context.close()
        return torch.from_numpy(np.stack(rows))

    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the tokens that greedily follow a prompt."""
        context = self._sequence(len(prompt) + limit, POSITIONS_AT_ONCE, outputs=1)
        token = likeliest(context.read(prompt), suppressed)
        for position in range(len(prompt), len(prompt) + limit):
            yield token
            if position + 1 < len(prompt) + limit:
                token = likeliest(context.read([token], start=position), suppressed)

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return self.model.ends(token)

    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens."""
        started = time.perf_counter()
        context = self._sequence(len(prompt) + new_tokens, PROMPT_BATCH, outputs=1)
        row = context.read(prompt)
        prefilled = time.perf_counter()
        tokens = [int(row.argmax())]
        first = time.perf_counter()
        for position in range(len(prompt), len(prompt) + new_tokens - 1):
            tokens.append(int(context.read(tokens[-1:], start=position).argmax()))
        return Timing(tokens, prefilled - started, first - started, time.perf_counter() - started)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens that both sequences begin with."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


# ---------------------------------------------------------------- llama.cpp's objects


def gguf_file(path: Path) -> Path:
    """Return the GGUF to load: a file itself, or a folder's only one or first part.

    ArtifactError if a folder has none, several that are not parts of one, or lacks a part.
    """
    if path.is_file():
        return path
    files = sorted(each for each in path.glob("*.gguf") if not is_mmproj(each.name))
    if len(files) == 1 and not _PART.search(files[0].name):
        return files[0]
    names = {file.name for file in files}
    firsts = [file for file in files if (part := _PART.search(file.name)) and int(part[1]) == 1]
    if len(firsts) != 1:
        listed = ", ".join(sorted(names)) or "none"
        raise ArtifactError(f"{path}: one GGUF, or the parts of one, is expected; found: {listed}.")
    stem, _, count = firsts[0].name.rpartition("-00001-of-")
    parts = {f"{stem}-{n:05}-of-{count}" for n in range(1, int(count[:5]) + 1)}
    if parts != names:
        lacking = ", ".join(sorted(parts - names)) or "none"
        others = ", ".join(sorted(names - parts)) or "none"
        raise ArtifactError(f"{path}: parts missing: {lacking}; other GGUF files: {others}.")
    return firsts[0]


class LlamaModel:
    """Weights and vocabulary, loaded whole; freed when the last reference to it goes.

    vocabulary: tokens; a row of logits has as many. features: of an embedding. description: in
    llama.cpp's words.
    """

    def __init__(self, path: Path, *, gpu: bool) -> None:
        """Load a GGUF, with all its layers on the GPU or on the processor.

        ArtifactError if llama.cpp refuses it; UnsupportedError if the build has no GPU support.
        """
        self.lib = library()
        if gpu and not self.lib.llama_supports_gpu_offload():
            raise UnsupportedError(
                "This build of llama.cpp computes on the processor only.",
                hint="--device cpu",
            )
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if gpu else 0
        capture_errors(self.lib)
        self.handle = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ArtifactError(f"llama.cpp refuses {path}: {logged_errors()}")
        weakref.finalize(self, self.lib.llama_model_free, self.handle)
        self._vocab = self.lib.llama_model_get_vocab(self.handle)
        self.vocabulary = int(self.lib.llama_vocab_n_tokens(self._vocab))
        self.features = int(self.lib.llama_model_n_embd_out(self.handle))
        text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        self.lib.llama_model_desc(self.handle, text, _DESCRIPTION_BYTES)
        self.description = text.value.decode("utf-8", errors="replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends generation."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))


@dataclass(frozen=True)
class ContextSize:
    """tokens: in one sequence. batch: at once. outputs: positions of a batch that give logits.

    embeds: for embeddings instead.
    """

    tokens: int
    batch: int
    outputs: int
    embeds: bool = False


class LlamaContext:
    """One sequence of tokens and its key-value cache; freed by ``close``, or with the object."""

    def __init__(self, model: LlamaModel, size: ContextSize, *, threads: int) -> None:
        """Allocate; UnsupportedError if llama.cpp cannot, or allocates something else."""
        self._model, self._lib, self.size = model, model.lib, size
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = size.tokens, size.batch, size.batch
        params.n_outputs_max = params.n_outputs_max_per_seq = size.outputs
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = size.embeds
        capture_errors(self._lib)
        handle = self._lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise UnsupportedError(f"llama.cpp cannot run {size.tokens} tokens: {logged_errors()}")
        self._handle: Any = handle
        self.close = weakref.finalize(self, self._lib.llama_free, handle)
        actual = {
            name: getattr(self._lib, f"llama_{name}")(handle)
            for name in ("n_batch", "n_ubatch", "n_threads", "n_threads_batch")
        }
        requested = (size.batch, size.batch, threads, threads)
        if tuple(actual.values()) != requested or self._lib.llama_n_ctx(handle) < size.tokens:
            self.close()
            raise UnsupportedError(f"llama.cpp allocated {actual} instead of {requested}.")

    def clear(self) -> None:
        """Forget the sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)

    def keep(self, tokens: int) -> bool:
        """Forget the sequence except its first tokens; return whether that was possible."""
        memory = self._lib.llama_get_memory(self._handle)
        return bool(self._lib.llama_memory_seq_rm(memory, 0, tokens, -1))

    def read(self, tokens: Sequence[int], *, start: int = 0) -> npt.NDArray[np.float32]:
        """Append tokens, any number of batches; return the last one's logits, (vocabulary,)."""
        ids = np.array(tokens, dtype=np.int32)
        for begin in range(0, len(ids), self.size.batch):
            piece = ids[begin : begin + self.size.batch]
            rows = self.decode(piece, start=start + begin, outputs=1)
        last: npt.NDArray[np.float32] = rows[0]
        return last

    def decode(self, ids: Ids, *, start: int, outputs: int) -> npt.NDArray[np.float32]:
        """Append tokens (n,) at position ``start``; return logits of the last ``outputs`` of them.

        Returns (outputs, vocabulary) float32, softcap included, in llama.cpp's own memory: the next
        call overwrites it. ArtifactError if llama.cpp fails.
        """
        count = len(ids)
        if not (0 < count <= self.size.batch and start + count <= self.size.tokens):
            raise ValueError(f"{count} tokens at {start} do not fit {self.size}")
        if not 0 < outputs <= min(count, self.size.outputs):
            raise ValueError(f"{outputs} outputs of {count} tokens do not fit {self.size}")
        if int(ids.min()) < 0 or int(ids.max()) >= self._model.vocabulary:
            raise ArtifactError(
                f"token id {int(ids.max())}: llama.cpp's vocabulary ends before it."
            )
        tokens = np.ascontiguousarray(ids, dtype=np.int32)
        positions = np.arange(start, start + count, dtype=np.int32)
        sequence = np.zeros(1, dtype=np.int32)
        sequences = np.full(count, sequence.ctypes.data, dtype=np.uintp)
        counts = np.ones(count, dtype=np.int32)
        output = np.zeros(count, dtype=np.int8)
        output[-outputs:] = 1
        batch = Batch(
            n_tokens=count,
            token=tokens.ctypes.data,
            pos=positions.ctypes.data,
            n_seq_id=counts.ctypes.data,
            seq_id=sequences.ctypes.data,
            logits=output.ctypes.data,
        )
        code = self._lib.llama_decode(self._handle, batch)
        if self.size.embeds:
            found = self._lib.llama_get_embeddings_seq(self._handle, 0) if code == 0 else None
            shape: tuple[int, ...] = (self._model.features,)
        else:
            found = self._lib.llama_get_logits(self._handle) if code == 0 else None
            shape = (outputs, self._model.vocabulary)
        if not found:
            raise ArtifactError(f"llama.cpp fails with {code}: {logged_errors()}")
        return np.ctypeslib.as_array(found, shape=shape)

    def embedding(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Return the embedding of one whole text, (features,) float32."""
        return self.decode(ids, start=0, outputs=len(ids)).copy()
