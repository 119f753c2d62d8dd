"""The executable that a llamafile begins with: download it, check it, read its zip entries, run it.

A llamafile runtime is itself a zip: its web pages, time zones and GPU modules are entries, found
through a directory at its end. The new directory must list them again, or the runtime loses them.
Downloads use huggingface_hub's HTTP client, which brings the user's proxies and certificates.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from gemquant.core.protocols import Progress
from gemquant.core.resources import cache_folder, human_bytes
from gemquant.core.untrusted import sha256_of, user_path
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    OutputError,
    RuntimeMissingError,
    UnsupportedError,
    UsageError,
)
from gemquant.formats.llamafile_archive import BundledEntry, entry_length, moved_entry

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Digests:
    """Size, CRC-32 (for zip) and hexadecimal SHA-256 of some content."""

    bytes: int
    crc32: int
    sha256: str


def digests_of(
    path: Path,
    *,
    offset: int = 0,
    size: int | None = None,
    task: str,
    progress: Progress,
) -> Digests:
    """Read a file, or ``size`` bytes from ``offset`` (fewer if it ends earlier)."""
    left = path.stat().st_size - offset if size is None else size
    crc, sha, done = 0, hashlib.sha256(), 0
    progress.start(task, -(-left // _CHUNK))
    with path.open("rb") as file:
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            crc = zlib.crc32(chunk, crc)
            sha.update(chunk)
            done += len(chunk)
            left -= len(chunk)
            progress.advance(task)
    return Digests(done, crc, sha.hexdigest())


MAX_BYTES = 2_000_000_000
"""Size of a runtime; the largest published one, with its GPU modules, has under 1 GB."""

_MAX_ENTRIES = 60_000
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Runtime:
    """An executable to begin with. origin: its URL, or its file's name."""

    path: Path
    origin: str
    bytes: int
    sha256: str
    entries: Sequence[BundledEntry]


def checked_sha256(text: str) -> str:
    """Return a SHA-256 in lower case; UsageError if the text is not one."""
    if not _SHA256.fullmatch(text):
        raise UsageError(
            f"--sha256 {text}: must be 64 hexadecimal digits.",
            hint="Copy it from the page that publishes the runtime.",
        )
    return text.lower()


def find_runtime(name: str, sha256: str | None, progress: Progress) -> Runtime:
    """Open a runtime, downloading it first if ``name`` is a URL; that needs its hash."""
    expected = None if sha256 is None else checked_sha256(sha256)
    if "://" not in name:
        path = user_path(name)
        return open_runtime(path, origin=path.name, sha256=expected)
    require_https(name)
    if expected is None:
        raise UsageError(
            f"--runtime {name}: a URL needs --sha256.",
            hint="Copy the hash from the page that publishes the runtime, not from the download.",
        )
    return open_runtime(download(name, expected, progress), origin=name, sha256=expected)


def open_runtime(path: Path, *, origin: str, sha256: str | None) -> Runtime:
    """Hash an executable and read its zip directory, if it has one.

    sha256: the expected one, or None. UsageError if it is not a file or too large, ArtifactError
    if it is another file, UnsupportedError if its zip directory cannot be copied.
    """
    if not path.is_file():
        raise UsageError(
            f"--runtime {path}: no such file.",
            hint="Download one from https://github.com/mozilla-ai/llamafile/releases",
        )
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise UsageError(
            f"--runtime {path}: {human_bytes(size)}; must be from 1 B to {human_bytes(MAX_BYTES)}."
        )
    digest = sha256_of(path)
    if sha256 is not None and digest != sha256:
        raise ArtifactError(
            f"the runtime {origin} is not the expected file: sha256 {digest}, not {sha256}.",
            hint="Compare both with the hash that the publisher states.",
        )
    return Runtime(path, origin, size, digest, bundled_entries(path))


def bundled_entries(path: Path) -> list[BundledEntry]:
    """Read the zip directory of an executable, with offsets from the beginning of the file."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            for info in infos:
                archive.open(info).close()  # compares the local header
            file.seek(archive.start_dir)
            directory = file.read()
        return _entries(directory, infos)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            f"--runtime {path}: its zip directory cannot be copied: {error}.",
            hint="Download the runtime again.",
        ) from None


def _entries(directory: bytes, infos: Sequence[zipfile.ZipInfo]) -> list[BundledEntry]:
    if len(infos) > _MAX_ENTRIES:
        raise ValueError(f"{len(infos)} entries; the limit is {_MAX_ENTRIES}")
    entries: list[BundledEntry] = []
    position = 0
    for info in infos:
        length = entry_length(directory, position)
        record = directory[position : position + length]
        entries.append(BundledEntry(info.filename, moved_entry(record, info.header_offset)))
        position += length
    return entries


_PIECE = 1 << 20
_MAX_REDIRECTS = 5
_SECONDS = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNCOMPRESSED = {"accept-encoding": "identity"}


def cached_runtime(sha256: str) -> Path:
    """Path of a downloaded runtime in the cache."""
    return cache_folder() / "runtimes" / sha256


def download(url: str, sha256: str, progress: Progress) -> Path:
    """Return the file with this hash, from the cache or from the URL.

    UsageError unless https, RuntimeMissingError if the download fails, ArtifactError for a file
    with another hash.
    """
    require_https(url)
    cached = cached_runtime(sha256)
    if cached.is_file() and sha256_of(cached) == sha256:
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=cached.parent, prefix=f".{sha256[:8]}.")
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                for chunk in _stream(url, progress):
                    out.write(chunk)
            digest = sha256_of(scratch)
            if digest != sha256:
                raise ArtifactError(
                    f"{url}: sha256 {digest}, not {sha256}; the download was discarded.",
                    hint="Compare both with the hash that the publisher states.",
                )
            scratch.replace(cached)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{cached.parent}: cannot be written: {error.strerror or error}.",
            hint="Set GEMQUANT_CACHE to a folder with enough space.",
        ) from error
    return cached


def require_https(url: str) -> None:
    """Raise UsageError unless a URL is https and names a host."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(
            f"--runtime {url}: must be an https:// URL or a path.",
            hint="Download the file another way and pass its path.",
        )


def _stream(url: str, progress: Progress) -> Iterator[bytes]:
    received = 0
    with _response(url) as response:
        size = response.headers.get("content-length", "")
        total = int(size) if size.isdigit() else 0
        if total > MAX_BYTES:
            raise _too_large(url)
        progress.start("downloading", -(-total // _PIECE))
        for chunk in response.iter_raw(_PIECE):
            received += len(chunk)
            if received > MAX_BYTES:
                raise _too_large(url)
            progress.advance("downloading")
            yield chunk


@contextmanager
def _response(url: str) -> Iterator[Any]:
    """Yield the final response; every redirect must be https too."""
    from huggingface_hub import get_session

    reason = f"more than {_MAX_REDIRECTS} redirects"
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            require_https(url)
            with get_session().stream(
                "GET", url, follow_redirects=False, timeout=_SECONDS, headers=_UNCOMPRESSED
            ) as response:
                if response.status_code == 200:
                    yield response
                    return
                if response.status_code not in _REDIRECTS:
                    reason = f"status {response.status_code}"
                    break
                url = urljoin(url, response.headers["location"])
    except GemquantError:
        raise
    except Exception as error:
        # No base class of the client's errors is common to all releases of huggingface_hub.
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and package not in {"httpx", "httpx2"}:
            raise
        raise _unreachable(url, f"{type(error).__name__}: {error}") from error
    raise _unreachable(url, reason)


def _too_large(url: str) -> ArtifactError:
    return ArtifactError(f"{url}: more than {human_bytes(MAX_BYTES)}, the limit for a runtime.")


def _unreachable(url: str, reason: str) -> RuntimeMissingError:
    return RuntimeMissingError(
        f"{url}: cannot be downloaded: {reason}.",
        hint="Download it another way and pass its path: --runtime PATH",
    )


SECONDS = 30.0
_LONGEST_ANSWER = 4096


@dataclass(frozen=True)
class Trial:
    """Outcome of ``--version``. version: first line of the output; not_run: the reason, if any."""

    version: str | None
    not_run: str | None


def ask_version(path: Path, *, seconds: float = SECONDS) -> Trial:
    """Run a llamafile with ``--version``, which loads no weights.

    A system that does not support the portable executable format can run it as a shell script,
    so ``sh`` is the second attempt.
    """
    command = [str(path), "--version"]
    try:
        try:
            return _run(command, seconds)
        except OSError as error:
            if error.errno != errno.ENOEXEC or os.name != "posix":
                raise
        return _run(["/bin/sh", *command], seconds)
    except OSError as error:
        return Trial(None, f"it does not start on this machine: {error.strerror}")


def _run(command: list[str], seconds: float) -> Trial:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        try:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Trial(None, f"no output of --version within {seconds:g} s")
        output.seek(0)
        lines = output.read(_LONGEST_ANSWER).decode(errors="replace").split("\n")
    if process.returncode != 0:
        return Trial(None, f"--version ended with exit code {process.returncode}")
    first = next((line.strip() for line in lines if line.strip()), "")
    if not any(sign.isdigit() for sign in first):
        return Trial(None, f"--version printed {first[:60]!r}")
    return Trial(first, None)
