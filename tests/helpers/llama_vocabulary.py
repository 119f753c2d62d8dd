"""A vocabulary loaded by llama.cpp, without weights, and its own tokenizer over it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Self

from gemquant.formats.gguf.values import Metadata, packed_metadata
from gemquant.runtimes.llamacpp_library import capture_errors, library, logged_errors, missing

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_tokenize": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32,
         ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_detokenize": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32,
         ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_vocab_bos": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_vocab_eos": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_vocab_eot": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_vocab_pad": (ctypes.c_int32, [ctypes.c_void_p]),
}  # fmt: skip

why_not = missing
"""Why llama.cpp cannot run here, or None."""


def write_vocabulary(path: Path, metadata: Metadata) -> Path:
    """Write a GGUF with metadata and no tensors."""
    counts = (0).to_bytes(8, "little") + len(metadata).to_bytes(8, "little")
    header = b"GGUF" + (3).to_bytes(4, "little") + counts + packed_metadata(metadata)
    path.write_bytes(header + bytes(-len(header) % 32))
    return path


class LlamaVocabulary:
    """llama.cpp's tokenizer over the vocabulary of a GGUF."""

    def __init__(self, path: Path) -> None:
        self._lib = library()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        params = self._lib.llama_model_default_params()
        params.vocab_only = True
        capture_errors(self._lib)
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise AssertionError(f"llama.cpp refuses {path}: {logged_errors()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.size = int(self._lib.llama_vocab_n_tokens(self._vocab))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._lib.llama_model_free(self._model)

    def ids(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text; special tokens inside it are recognised."""
        data = text.encode()
        space = len(data) + 8
        found = (ctypes.c_int32 * space)()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), ctypes.addressof(found), space, add_special, True
        )
        if count < 0:
            raise AssertionError(f"{-count} tokens for {len(data)} bytes")
        return list(found[:count])

    def text(self, ids: list[int]) -> bytes:
        """The text of token ids, special tokens included."""
        tokens = (ctypes.c_int32 * max(len(ids), 1))(*ids)
        room = 64 * len(ids) + 64
        buffer = ctypes.create_string_buffer(room)
        count = self._lib.llama_detokenize(
            self._vocab, ctypes.addressof(tokens), len(ids), buffer, room, False, True
        )
        if count < 0:
            raise AssertionError(f"{-count} bytes for {len(ids)} tokens")
        return buffer.raw[:count]

    def token(self, role: str) -> int:
        """Id of "bos", "eos", "eot" or "pad"."""
        return int(getattr(self._lib, f"llama_vocab_{role}")(self._vocab))

    def ends(self, index: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, index))
