"""llama.cpp's server, which the package ``xllamacpp`` contains: for ``serve`` and for ``chat``.

The server always listens. In ``chat`` nobody else may connect: it gets a free port on the loopback
interface and a random key that nobody is given.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemquant.errors import ArtifactError, GemquantError, RuntimeMissingError, UsageError
from gemquant.models.chat import Message
from gemquant.runtimes.chat.media import Sense
from gemquant.runtimes.chat.presets import CacheType
from gemquant.runtimes.chat.session import ContextFullError
from gemquant.runtimes.llamacpp_library import INSTALL, VERSION, missing
from gemquant.runtimes.runtime import cpu_place
from gemquant.runtimes.sampling import Sampling, stream_from_callback

LOOPBACK = "127.0.0.1"
_ALL_LAYERS = -1
_SILENT = 0
_CACHE_TYPES: Mapping[CacheType, str] = {
    "f32": "GGML_TYPE_F32",
    "f16": "GGML_TYPE_F16",
    "q8_0": "GGML_TYPE_Q8_0",
    "q4_0": "GGML_TYPE_Q4_0",
}
_IMAGE_TOKENS = 280
"""Of an image whose size the model leaves open, as its own processor has it."""
CLIENTS_WAITING = 32
"""Connections that are accepted while others are answered; further ones wait."""
_CONTEXT_FULL = "exceed_context_size_error"


@dataclass(frozen=True)
class ServerSettings:
    """How llama.cpp's server holds a model.

    template: Jinja source; None for the GGUF's. context: tokens of a conversation. gpu: whether
    layers go to a GPU. parallel: conversations at once, each with its own context. keys: a client
    must send one of them; empty for no check. mmproj: file of towers, which give it senses.
    metrics: whether /metrics counts requests.
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
    mmproj: Path | None = None
    senses: Collection[Sense] = ()
    host: str = LOOPBACK
    port: int = 0
    keys: Sequence[str] = ()
    metrics: bool = False


def require_llamacpp() -> None:
    """Raise RuntimeMissingError unless the supported version is installed."""
    reason = missing()
    if reason is not None:
        raise RuntimeMissingError(f"llama.cpp cannot run here: {reason}.", hint=INSTALL)


def free_gpu_bytes() -> int | None:
    """Return the memory free on the largest GPU that this build uses; None if it uses none."""
    import xllamacpp

    processor = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    free = [d["memory_free"] for d in xllamacpp.get_device_info() if d["type"] != processor]
    return max(free, default=None)


def start_server(settings: ServerSettings) -> Any:
    """Load the model and listen until the process ends; ArtifactError if llama.cpp cannot.

    The server is never destroyed: its destructor was measured to wait forever while a request is
    running, or before the first one, and it holds the interpreter lock.
    """
    require_llamacpp()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(settings.path)
    params.model_alias = {settings.name}
    if settings.mmproj is not None:
        params.mmproj.path, params.mmproj_use_gpu = str(settings.mmproj), settings.gpu
        params.image_max_tokens = _IMAGE_TOKENS
    params.n_ctx = settings.context * settings.parallel
    params.n_batch = params.n_ubatch = settings.batch
    params.n_parallel = settings.parallel
    params.n_threads_http = settings.parallel + CLIENTS_WAITING
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
    params.endpoint_slots, params.endpoint_metrics = False, settings.metrics
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


class LlamaCppChat:
    """A GGUF that answers in this process."""

    def __init__(self, settings: ServerSettings) -> None:
        key = secrets.token_urlsafe(32)
        self._server = start_server(
            replace(settings, keys=(key,), host=LOOPBACK, port=0, parallel=1, metrics=False)
        )
        self.context = settings.context
        place = "GPU" if settings.gpu else cpu_place(settings.threads)
        self.software = f"llama.cpp of xllamacpp {VERSION}, {place}"

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Generator[str, None, None]:
        """Yield the answer piece by piece; the tokens of earlier turns stay in the cache."""
        request = {
            "messages": [dict(message) for message in messages],
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            # llama.cpp's default is to think where a template can, and a template's not to.
            "chat_template_kwargs": {"enable_thinking": False},
            "max_tokens": sampling.max_tokens,
            **({} if sampling.seed is None else {"seed": sampling.seed}),
        }

        def produce(put: Callable[[str], None]) -> None:
            failures: list[GemquantError] = []

            def take(chunk: Any) -> bool:
                """Pass a piece on; True ends the answer."""
                failure = _failure(chunk)
                if failure is not None:
                    failures.append(failure)
                    return True
                choices = chunk.get("choices") or [{}]
                if piece := (choices[0].get("delta") or {}).get("content"):
                    put(str(piece))
                return stop.is_set()

            try:
                self._server.handle_chat_completions(request, take)
            except ValueError as error:
                raise UsageError(f"llama.cpp refuses the conversation: {error}") from None
            if failures:
                raise failures[0]

        return stream_from_callback(produce, stop)


def _failure(chunk: Any) -> GemquantError | None:
    error = chunk.get("error") if isinstance(chunk, dict) else None
    if not isinstance(error, dict):
        return None
    message = str(error.get("message"))
    if error.get("type") == _CONTEXT_FULL:
        return ContextFullError(message)
    return UsageError(f"llama.cpp refuses the conversation: {message}")
