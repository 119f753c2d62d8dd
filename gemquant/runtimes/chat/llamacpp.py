"""A GGUF in llama.cpp, through the server that the package ``xllamacpp`` carries.

The server always listens; in a conversation nobody else is meant to, so that it then gets a port of
its own on the loopback interface and a key that is told to nobody.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemquant.errors import ArtifactError, GemquantError, RuntimeMissingError, UsageError
from gemquant.runtimes.chat.engine import ContextFullError, Message
from gemquant.runtimes.chat.pieces import streamed
from gemquant.runtimes.chat.presets import CacheType
from gemquant.runtimes.chat.sampling import Sampling
from gemquant.runtimes.llamacpp_library import INSTALL, VERSION, missing

LOOPBACK = "127.0.0.1"
_ALL_LAYERS = -1
_SILENT = 0
_CACHE_TYPES: Mapping[CacheType, str] = {
    "f32": "GGML_TYPE_F32",
    "f16": "GGML_TYPE_F16",
    "q8_0": "GGML_TYPE_Q8_0",
    "q4_0": "GGML_TYPE_Q4_0",
}
_CLIENTS_WAITING = 32
"""Connections that are held while others are answered; further ones wait to be accepted."""
_CONTEXT_FULL = "exceed_context_size_error"


@dataclass(frozen=True)
class LlamaSettings:
    """How llama.cpp holds a model.

    template: Jinja source; None for the GGUF's own. context: tokens of a conversation. gpu: whether
    layers go to a GPU that the build knows. parallel: conversations at once, each with a context of
    its own. keys: that a client must give one of; none for no check. counted: whether /metrics
    counts requests.
    """

    path: Path
    name: str
    template: str | None
    context: int
    batch: int
    cache: CacheType
    threads: int
    gpu: bool
    parallel: int = 1
    host: str = LOOPBACK
    port: int = 0
    keys: Sequence[str] = ()
    counted: bool = False


def require_llamacpp() -> None:
    """Raise RuntimeMissingError unless the one version that is known here is installed."""
    reason = missing()
    if reason is not None:
        raise RuntimeMissingError(f"llama.cpp cannot run here: {reason}.", hint=INSTALL)


def free_gpu_bytes() -> int | None:
    """Memory free on the largest GPU that this build of llama.cpp uses; None where it uses none."""
    import xllamacpp

    processor = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    free = [d["memory_free"] for d in xllamacpp.get_device_info() if d["type"] != processor]
    return max(free, default=None)


def start_server(settings: LlamaSettings) -> Any:
    """Load the model and listen, for as long as the process lives.

    ArtifactError where llama.cpp does neither. The server is never taken down: its destructor was
    measured to wait for ever where a request is under way, or where none has come yet, and holds
    the interpreter meanwhile.
    """
    require_llamacpp()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(settings.path)
    params.model_alias = {settings.name}
    params.n_ctx = settings.context * settings.parallel
    params.n_batch = params.n_ubatch = settings.batch
    params.n_parallel = settings.parallel
    params.n_threads_http = settings.parallel + _CLIENTS_WAITING
    params.n_gpu_layers = _ALL_LAYERS if settings.gpu else 0
    params.fit_params = False
    kind = getattr(xllamacpp.ggml_type, _CACHE_TYPES[settings.cache])
    params.cache_type_k = params.cache_type_v = kind
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    if settings.template is not None:
        params.chat_template = settings.template
    params.hostnames, params.port = [settings.host], settings.port
    params.api_keys = list(settings.keys)
    # No browser page of another origin may read answers.
    params.cors_origins, params.cors_credentials = f"http://{LOOPBACK}", False
    params.endpoint_slots, params.endpoint_metrics = False, settings.counted
    params.ui = False
    params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = _SILENT
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ArtifactError(
            f"llama.cpp refuses {settings.path.name}, or {settings.host}:{settings.port}: {error}"
        ) from None
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server


class LlamaCppEngine:
    """A GGUF that answers in this process."""

    def __init__(self, settings: LlamaSettings) -> None:
        key = secrets.token_urlsafe(32)
        own = replace(settings, keys=(key,), host=LOOPBACK, port=0, parallel=1, counted=False)
        self._server = start_server(own)
        self.context = settings.context
        place = "GPU" if settings.gpu else f"{settings.threads} CPU threads"
        self.description = f"llama.cpp of xllamacpp {VERSION}, {place}"

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Iterator[str]:
        """Yield the answer piece by piece; the prompt's tokens of earlier turns are kept."""
        request = {
            "messages": [dict(message) for message in messages],
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "max_tokens": sampling.max_tokens,
            **({} if sampling.seed is None else {"seed": sampling.seed}),
        }
        server = self._server

        def produce(put: Callable[[str], None]) -> None:
            failures: list[GemquantError] = []

            def take(chunk: Any) -> bool:
                """Pass a piece on; True ends the answer."""
                failure = _failure(chunk)
                if failure is not None:
                    failures.append(failure)
                    return True
                piece = _piece(chunk)
                if piece:
                    put(piece)
                return stop.is_set()

            try:
                server.handle_chat_completions(request, take)
            except ValueError as error:
                raise UsageError(f"llama.cpp refuses the conversation: {error}") from None
            if failures:
                raise failures[0]

        return streamed(produce, stop)

    def close(self) -> None:
        """Nothing: what the server holds goes with the process."""


def _failure(chunk: Any) -> GemquantError | None:
    error = chunk.get("error") if isinstance(chunk, dict) else None
    if not isinstance(error, dict):
        return None
    message = str(error.get("message"))
    if error.get("type") == _CONTEXT_FULL:
        return ContextFullError(message)
    return UsageError(f"llama.cpp refuses the conversation: {message}")


def _piece(chunk: Any) -> str:
    choices = chunk.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")
