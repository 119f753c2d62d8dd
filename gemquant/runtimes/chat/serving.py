"""Serves a GGUF to other programs with llama.cpp's server, on this machine unless made public."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.core.artifact import MANIFEST_FILE, read_manifest
from gemquant.core.protocols import Progress
from gemquant.core.untrusted import user_path
from gemquant.errors import GemquantError, RuntimeMissingError, UnsupportedError, UsageError
from gemquant.formats.gguf.find import find_gguf, ggufs_of
from gemquant.models.chat import Message
from gemquant.runtimes.chat.engine import Engine
from gemquant.runtimes.chat.load import ChatRequest, server_settings
from gemquant.runtimes.chat.presets import Choice

if TYPE_CHECKING:
    from gemquant.runtimes.chat.guard import Guard

KEY_VARIABLE = "GEMQUANT_API_KEY"
SHORTEST_KEY = 16
MAX_PARALLEL = 64
_LONGEST_KEY = 4096
_KEY = re.compile(r"[!-~]+")
_SECONDS_BETWEEN_LOOKS = 0.05
# Without this, llama.cpp would continue an empty prompt.
_NOT_EMPTY = "{%- if not messages -%}{{ raise_exception('messages is empty') }}{%- endif -%}"


@dataclass(frozen=True)
class Address:
    """Where to listen. public: whether other machines may connect. names: further host names."""

    host: str
    port: int
    public: bool
    names: Sequence[str] = ()

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Serving:
    """A running server."""

    url: str
    model: str
    context: int
    parallel: int
    choice: Choice
    guard: Guard


def read_key(file: Path | None) -> str | None:
    """Return the key that clients must send, from a file or $GEMQUANT_API_KEY; None without either.

    UsageError if it is too short, or has characters that an HTTP header cannot carry.
    """
    if file is not None:
        where = f"--api-key-file {file}"
        try:
            with file.open(encoding="ascii") as opened:
                key = opened.read(_LONGEST_KEY).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: cannot be read: {error}.") from None
    else:
        where = f"${KEY_VARIABLE}"
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            return None
    if len(key) < SHORTEST_KEY or not _KEY.fullmatch(key):
        raise UsageError(
            f"{where}: the key must have at least {SHORTEST_KEY} visible ASCII characters.",
            hint="python -c 'import secrets; print(secrets.token_urlsafe(32))' > KEY-FILE",
        )
    return key


def address_problems(address: Address, key: str | None) -> Sequence[GemquantError]:
    """Return every reason not to listen there."""
    problems: list[GemquantError] = []
    if not 0 <= address.port <= 65535:
        problems.append(UsageError(f"--port {address.port}: must be from 0 (any) to 65535."))
    if not address.loopback:
        if not address.public:
            problems.append(
                UsageError(
                    f"--host {address.host}: other machines could connect.",
                    hint="Add --public to allow that, or leave --host out.",
                )
            )
        if key is None:
            problems.append(
                UsageError(
                    f"--host {address.host}: a public server needs a key.",
                    hint=f"Set ${KEY_VARIABLE}, or give --api-key-file FILE.",
                )
            )
    return problems or _binding_problems(address)


def serve(
    request: ChatRequest, address: Address, *, key: str | None, parallel: int, progress: Progress
) -> Serving:
    """Load a GGUF and listen; return as soon as the server answers.

    Raises a GemquantError before anything is loaded if that can be known.
    """
    _require_gguf(request.model)
    opening: list[Message] = [{"role": "user", "content": "Hello"}]
    gguf = find_gguf(request.model)
    settings, choice = server_settings(request, gguf, opening, parallel=parallel, progress=progress)
    settings = replace(settings, template=_NOT_EMPTY + (settings.template or ""), metrics=True)
    try:
        from gemquant.runtimes.chat.guard import Guard, GuardSettings
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            f"{error.name} is not installed.", hint="pip install 'gemquant[gguf]'"
        ) from None
    guard = Guard(
        Engine(settings),
        GuardSettings(
            address.host,
            address.port,
            address.names,
            key,
            settings.context,
            settings.parallel,
            settings.senses,
        ),
    )
    url = f"{guard.listening_address}/v1"
    return Serving(url, settings.name, settings.context, parallel, choice, guard)


def wait_until_idle(serving: Serving, *, seconds: float, give_up: threading.Event) -> bool:
    """Wait until no request is running; return False if one still is after ``seconds``."""
    end = time.monotonic() + seconds
    while serving.guard.active:
        if time.monotonic() >= end or give_up.wait(_SECONDS_BETWEEN_LOOKS):
            return False
    return True


def _binding_problems(address: Address) -> list[GemquantError]:
    """Listen for a moment, since llama.cpp gives no reason when it cannot."""
    try:
        (family, kind, protocol, _, place), *_ = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        reason = error.strerror or str(error)
        return [
            UsageError(
                f"--host {address.host} --port {address.port}: cannot listen: {reason}.",
                hint="Choose another --port; 0 takes any free one.",
            )
        ]
    return []


def _require_gguf(ref: str) -> None:
    folder = user_path(ref)
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = read_manifest(folder)
    if ggufs_of(manifest):
        return
    programs = {
        "mlx": "mlx_lm.server --model",
        "awq-gemm": "vllm serve",
        "compressed-tensors": "vllm serve",
    }
    program = programs.get(manifest.container, "transformers serve")
    raise UnsupportedError(
        f"{ref}: gemquant serve runs GGUF files; this artifact is {manifest.container}.",
        hint=f"Make a GGUF: gemquant gguf {manifest.source.ref} --type Q4_K_M. "
        f"To serve this artifact: {program} {folder}",
    )
