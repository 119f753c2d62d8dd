"""A runtime from a URL: over https, bounded, and used only if it is the file that was asked for.

The client is huggingface_hub's own, which brings the proxies and certificates that the user has set
up for the Hub. A file once downloaded is kept in the cache under its hash.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from gemquant.core.progress import Progress
from gemquant.core.resources import cache_folder, human_bytes
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    OutputError,
    RuntimeMissingError,
    UsageError,
)
from gemquant.formats.llamafile.digests import sha256_of
from gemquant.formats.llamafile.runtime import MAX_BYTES

_CHUNK = 1 << 20
_MAX_REDIRECTS = 5
_SECONDS = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AS_IT_IS = {"accept-encoding": "identity"}


def is_url(text: str) -> bool:
    """Whether a runtime was named by URL rather than by path."""
    return "://" in text


def cached_runtime(sha256: str) -> Path:
    """Where a downloaded runtime is kept."""
    return cache_folder() / "runtimes" / sha256


def download(url: str, sha256: str, progress: Progress) -> Path:
    """Return the file with this hash, from the cache or from the URL.

    Raises UsageError for what is not https, RuntimeMissingError where it cannot be had,
    ArtifactError where something else comes.
    """
    require_https(url)
    place = cached_runtime(sha256)
    if place.is_file() and sha256_of(place) == sha256:
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{sha256[:8]}.")
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                for chunk in _stream(url, progress):
                    out.write(chunk)
            found = sha256_of(scratch)
            if found != sha256:
                raise ArtifactError(
                    f"{url}: sha256 {found}, not {sha256}; it was not used.",
                    hint="Compare both with what the runtime's publisher says.",
                )
            scratch.replace(place)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{place.parent}: cannot be written: {error.strerror or error}.",
            hint="Set GEMQUANT_CACHE to a folder with enough space.",
        ) from error
    return place


def require_https(url: str) -> None:
    """Raise UsageError unless a URL is https and names a host."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(
            f"--runtime {url}: must be an https:// URL or a path.",
            hint="Download the file by other means and give its path.",
        )


def _stream(url: str, progress: Progress) -> Iterator[bytes]:
    received = 0
    with _answer(url) as answer:
        size = answer.headers.get("content-length", "")
        total = int(size) if size.isdigit() else 0
        if total > MAX_BYTES:
            raise _too_large(url)
        progress.start("downloading", -(-total // _CHUNK))
        for chunk in answer.iter_raw(_CHUNK):
            received += len(chunk)
            if received > MAX_BYTES:
                raise _too_large(url)
            progress.advance("downloading")
            yield chunk


@contextmanager
def _answer(url: str) -> Iterator[Any]:
    """Yield the response that holds the file; every redirect must be to https too."""
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            require_https(url)
            with _request(url) as answer:
                if answer.status_code not in _REDIRECTS:
                    _require_success(url, answer.status_code)
                    yield answer
                    return
                url = urljoin(url, answer.headers["location"])
    except GemquantError:
        raise
    except Exception as error:
        # The client's errors have no base class that all releases of huggingface_hub share.
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and package not in {"httpx", "httpx2"}:
            raise
        raise _unreachable(url, f"{type(error).__name__}: {error}") from error
    raise _unreachable(url, f"more than {_MAX_REDIRECTS} redirects")


def _request(url: str) -> AbstractContextManager[Any]:
    from huggingface_hub import get_session

    return get_session().stream(
        "GET", url, follow_redirects=False, timeout=_SECONDS, headers=_AS_IT_IS
    )


def _require_success(url: str, status: int) -> None:
    if status != 200:
        raise _unreachable(url, f"status {status}")


def _too_large(url: str) -> ArtifactError:
    return ArtifactError(f"{url}: more than {human_bytes(MAX_BYTES)}; no runtime is so large.")


def _unreachable(url: str, reason: str) -> RuntimeMissingError:
    return RuntimeMissingError(
        f"{url}: cannot be downloaded: {reason}.",
        hint="Download it by other means, and give its path with --runtime PATH.",
    )
