"""A GGUF for other programs: llama.cpp's server, kept to this machine unless told otherwise."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemquant.core.artifact import MANIFEST_FILE, read_manifest
from gemquant.errors import GemquantError, UnsupportedError, UsageError
from gemquant.formats.gguf.find import find_gguf, ggufs_of
from gemquant.runtimes.chat.engine import Message
from gemquant.runtimes.chat.llamacpp import start_server
from gemquant.runtimes.chat.opening import Wanted, llama_settings
from gemquant.runtimes.chat.presets import Choice

KEY_VARIABLE = "GEMQUANT_API_KEY"
SHORTEST_KEY = 16
MAX_PARALLEL = 64
_LONGEST_KEY = 4096
_KEY = re.compile(r"[!-~]+")
_PROCESSING = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)
_SECONDS_BETWEEN_LOOKS = 0.05
# Without this, llama.cpp would go on from nothing at all.
_NOT_EMPTY = "{%- if not messages -%}{{ raise_exception('messages is empty') }}{%- endif -%}"


@dataclass(frozen=True)
class Address:
    """Where to listen. public: whether an address beyond this machine is meant."""

    host: str
    port: int
    public: bool

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Serving:
    """A server that is answering. key: None where it asks for none."""

    url: str
    model: str
    context: int
    parallel: int
    choice: Choice
    key: str | None
    server: Any


def read_key(file: Path | None) -> str | None:
    """Return the key that clients must give, from a file or $GEMQUANT_API_KEY; None without either.

    UsageError for one that is too short, or has spaces or other signs that no header carries.
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
    """Return everything that forbids listening there."""
    problems: list[GemquantError] = []
    if not 0 <= address.port <= 65535:
        problems.append(UsageError(f"--port {address.port}: must be from 0 (any) to 65535."))
    if not address.loopback:
        if not address.public:
            problems.append(
                UsageError(
                    f"--host {address.host}: other machines would reach it.",
                    hint="Add --public if that is meant, or leave --host out.",
                )
            )
        if key is None:
            problems.append(
                UsageError(
                    f"--host {address.host}: a server that other machines reach needs a key.",
                    hint=f"Set ${KEY_VARIABLE}, or give --api-key-file FILE.",
                )
            )
    return problems or _binding_problems(address)


def serve(wanted: Wanted, address: Address, *, key: str | None, parallel: int) -> Serving:
    """Load a GGUF and listen; returns when the first question can be asked.

    Raises a GemquantError before anything is loaded where that can be known.
    """
    _require_gguf(wanted.model)
    opening: list[Message] = [{"role": "user", "content": "Hello"}]
    settings, choice = llama_settings(wanted, find_gguf(wanted.model), opening, parallel=parallel)
    settings = replace(
        settings,
        template=_NOT_EMPTY + (settings.template or ""),
        host=address.host,
        port=address.port,
        keys=() if key is None else (key,),
        counted=True,
    )
    server = start_server(settings)
    url = f"{server.listening_address}/v1"
    return Serving(url, settings.name, settings.context, parallel, choice, key, server)


def wait_until_idle(serving: Serving, *, seconds: float, give_up: threading.Event) -> bool:
    """Wait until no request is under way; False where one still is after so many seconds."""
    end = time.monotonic() + seconds
    while _under_way(serving):
        if time.monotonic() >= end or give_up.wait(_SECONDS_BETWEEN_LOOKS):
            return False
    return True


def _under_way(serving: Serving) -> bool:
    request = urllib.request.Request(serving.url.removesuffix("/v1") + "/metrics")  # noqa: S310
    if serving.key is not None:
        request.add_header("Authorization", f"Bearer {serving.key}")
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 - our own server
            counts = _PROCESSING.findall(answer.read(100_000).decode(errors="replace"))
    except (OSError, urllib.error.URLError):
        return False
    return any(int(count) for count in counts)


def _binding_problems(address: Address) -> list[GemquantError]:
    """Listen for a moment: llama.cpp would not say why it could not."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        reason = error.strerror or str(error)
        return [
            UsageError(
                f"--host {address.host} --port {address.port}: cannot be listened on: {reason}.",
                hint="Choose another --port; 0 takes any that is free.",
            )
        ]
    return []


def _require_gguf(ref: str) -> None:
    folder = Path(ref).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = read_manifest(folder)
    if ggufs_of(manifest):
        return
    others = {
        "mlx": f"mlx_lm.server --model {folder}",
        "awq-gemm": f"vllm serve {folder}",
        "compressed-tensors": f"vllm serve {folder}",
    }
    other = others.get(manifest.container, f"transformers serve {folder}")
    raise UnsupportedError(
        f"{ref}: gemquant serve runs GGUF, and this is {manifest.container}.",
        hint=f"Make one: gemquant gguf {manifest.source.ref} --type Q4_K_M. For this: {other}",
    )
