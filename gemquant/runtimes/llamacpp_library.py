"""llama.cpp's C interface, in the shared object of the package ``xllamacpp``.

The structures of llama.h change between builds without notice, and a wrong structure gives wrong
numbers rather than an error. So gemquant accepts one exact version of the package. Before the first
computation it compares the sizes that the library's functions write, and every default, with the
values recorded here.

Source: include/llama.h of ggml-org/llama.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import platform
from collections import deque
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int32, c_size_t, c_void_p
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from gemquant.errors import RuntimeMissingError, UnsupportedError

logger = logging.getLogger(__name__)

PACKAGE = "xllamacpp"
VERSION = "2026.10.11549"
INSTALL = f"pip install {PACKAGE}=={VERSION}"


class ModelParams(Structure):
    """llama_model_params."""

    _fields_: ClassVar[Any] = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    """llama_context_params; ``unnamed`` is a pointer of this build that stays null."""

    _fields_: ClassVar[Any] = [
        ("n_ctx", c_int32),
        ("n_batch", c_int32),
        ("n_ubatch", c_int32),
        ("n_seq_max", c_int32),
        ("n_rs_seq", c_int32),
        ("n_outputs_max", c_int32),
        ("n_outputs_max_per_seq", c_int32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_int32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("unnamed", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    """llama_batch: tokens (n_tokens,) with their positions, sequences, and whether to output."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


DEFAULTS: Mapping[type[Structure], Mapping[str, float]] = {
    ModelParams: {
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "use_extra_bufts": True,
    },
    ContextParams: {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "yarn_ext_factor": -1.0,
        "yarn_attn_factor": -1.0,
        "yarn_beta_fast": -1.0,
        "yarn_beta_slow": -1.0,
        "defrag_thold": -1.0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "no_perf": True,
        "op_offload": True,
        "swa_full": True,
    },
}
"""What the default functions of this build return; every field not named is zero."""

WRITTEN_BYTES: Mapping[type[Structure], int] = {ModelParams: 78, ContextParams: 168}
"""Bytes from the first to the last that the default functions write; padding follows."""

DEFAULT_FUNCTIONS: Mapping[type[Structure], str] = {
    ModelParams: "llama_model_default_params",
    ContextParams: "llama_context_default_params",
}

_SIGNATURES: Mapping[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_batch_get_one": (Batch, [c_void_p, c_int32]),
    "llama_context_default_params": (ContextParams, []),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_free": (None, [c_void_p]),
    "llama_get_embeddings_seq": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_model_default_params": (ModelParams, []),
    "llama_model_desc": (c_int32, [c_void_p, c_char_p, c_size_t]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_n_embd_out": (c_int32, [c_void_p]),
    "llama_n_batch": (c_int32, [c_void_p]),
    "llama_n_ctx": (c_int32, [c_void_p]),
    "llama_n_threads": (c_int32, [c_void_p]),
    "llama_n_threads_batch": (c_int32, [c_void_p]),
    "llama_n_ubatch": (c_int32, [c_void_p]),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_version": (c_char_p, []),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
}

_ERROR, _CONTINUED = 4, 5
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_ENOUGH_BYTES = 4096

_errors: deque[str] = deque(maxlen=8)
"""The last errors that llama.cpp logged."""


def missing() -> str | None:
    """Return why llama.cpp cannot run here, or None if the right package is installed."""
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"{PACKAGE} not installed; {INSTALL}"
    if installed != VERSION:
        return f"{PACKAGE} {installed} is installed, but only {VERSION} is supported; {INSTALL}"
    return None


def shared_objects() -> Sequence[Path]:
    """The package's shared libraries, found without importing it; none where it is not installed.

    >>> {path.suffix for path in shared_objects()} <= {".so", ".pyd"}
    True
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return [
        path
        for folder in folders or ()
        for path in sorted(Path(folder).glob("xllamacpp*"))
        if path.suffix in {".so", ".pyd"}
    ]


@cache
def library() -> Any:
    """Load llama.cpp and check that it is the build whose structures are recorded here.

    RuntimeMissingError if the package, this version or a function is missing; UnsupportedError if a
    structure differs from the recorded one.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeMissingError(f"llama.cpp cannot be run: {reason}.", hint=INSTALL)
    path = next(iter(shared_objects()), None)
    if path is None:
        raise RuntimeMissingError(f"{PACKAGE} {VERSION} has no shared object.", hint=INSTALL)
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise RuntimeMissingError(f"llama.cpp cannot be run: {error}.", hint=INSTALL) from error
    differing = [*_differing_sizes(path), *_differing_defaults(loaded), *_differing_batch(loaded)]
    if differing:
        raise UnsupportedError(
            f"llama.cpp in {path} is not the build {VERSION}: {'; '.join(differing)}.",
            hint=f"{INSTALL} --force-reinstall",
        )
    capture_errors(loaded)
    loaded.llama_backend_init()
    return loaded


def capture_errors(loaded: Any) -> None:
    """Send llama.cpp's log here and forget earlier errors.

    Call it before each load: xllamacpp's server installs its own log callback.
    """
    _errors.clear()
    loaded.llama_log_set(ctypes.cast(_log, c_void_p), None)


def logged_errors() -> str:
    """Return what llama.cpp logged as errors since ``capture_errors``."""
    return " ".join(_errors) or "it logged no reason"


def _record(level: int, text: bytes | None, _data: int | None) -> None:
    """Record errors for our own messages; ``-vv`` shows the whole log."""
    message = (text or b"").decode("utf-8", errors="replace").strip()
    if not message:
        return
    if level == _ERROR:
        _errors.append(message)
    if level != _CONTINUED:
        logger.debug("llama.cpp: %s", message)


_log = _LOG_CALLBACK(_record)


# ---------------------------------------------------------------- is it the recorded build?


def sizes_can_be_seen() -> bool:
    """Whether a structure is returned through a pointer passed like a first argument."""
    return platform.machine().lower() in {"x86_64", "amd64"}


def _differing_sizes(path: Path) -> list[str]:
    """Compare how far the default functions write, if the calling convention shows it."""
    if not sizes_can_be_seen():
        return []
    raw = ctypes.CDLL(str(path))  # another handle, for other signatures
    differing = []
    for kind, name in DEFAULT_FUNCTIONS.items():
        function = getattr(raw, name)
        function.restype, function.argtypes = c_void_p, [c_void_p]
        first, second = (_filled(function, byte) for byte in (0x5A, 0xA5))
        size = max((n for n in range(_ENOUGH_BYTES) if first[n] == second[n]), default=-1) + 1
        if size != WRITTEN_BYTES[kind]:
            differing.append(f"{name} writes {size} bytes, not {WRITTEN_BYTES[kind]}")
    return differing


def _filled(function: Any, byte: int) -> bytes:
    """Call a function on a buffer filled with one byte; return the buffer."""
    buffer = (ctypes.c_ubyte * _ENOUGH_BYTES)(*[byte] * _ENOUGH_BYTES)
    function(ctypes.addressof(buffer))
    return bytes(buffer)


def _differing_defaults(loaded: Any) -> list[str]:
    """List every field whose default is not the recorded one."""
    differing = []
    for kind, defaults in DEFAULTS.items():
        params = getattr(loaded, DEFAULT_FUNCTIONS[kind])()
        for name, *_ in kind._fields_:
            value, expected = getattr(params, name) or 0, defaults.get(name, 0)
            if value != expected:
                differing.append(f"{kind.__name__}.{name} is {value}, not {expected}")
    return differing


def _differing_batch(loaded: Any) -> list[str]:
    """Check the batch structure by one that llama.cpp fills in."""
    tokens = (c_int32 * 3)(7, 8, 9)
    batch = loaded.llama_batch_get_one(ctypes.addressof(tokens), 3)
    expected = {"n_tokens": 3, "token": ctypes.addressof(tokens)}
    return [
        f"Batch.{name} is {getattr(batch, name)}"
        for name, *_ in Batch._fields_
        if getattr(batch, name) != expected.get(name)
    ]
