"""The one way to read a whole file that may be damaged or hostile."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from gemquant.errors import CheckpointError, GemquantError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_DEPTH = 100
"""Deepest nesting of JSON and TOML that is read; Python's own limit is a thousand calls."""
MAX_TOML_BYTES = 64_000
"""tomllib takes quadratic time for some files; written by hand, none is larger."""
MAX_NUMBER = 1e100
_MAX_KEYS_PER_LINE = 1000
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_PROBLEMS_SHOWN = 8

M = TypeVar("M", bound="BaseModel")


def user_path(text: str) -> Path:
    """The path that a user typed; ``~`` is the home folder where there is one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own fails for an unknown ~user


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; OSError for anything else, at once: a FIFO never blocks."""
    try:
        descriptor = os.open(path, _FLAGS | getattr(os, "O_NOCTTY", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "not a regular file")


@dataclass(frozen=True)
class UntrustedFile:
    """A file that is read whole; everything wrong with it raises ``error``.

    limit: most bytes that are read. label: what messages call the file, by default its path.
    """

    path: Path
    limit: int
    error: Callable[..., GemquantError] = UsageError
    hint: str | None = None
    label: str = ""

    def bytes(self) -> bytes:
        """The content."""
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(size + 1) if size <= self.limit else b""
        except OSError as error:
            raise self._problem(f"cannot be read: {error.strerror}") from None
        if size > self.limit:
            raise self._problem(f"{size} bytes; at most {self.limit} are read")
        if len(content) != size:
            raise self._problem("cannot be read: its size changed meanwhile")
        return content

    def json(self) -> Any:
        """The value in a JSON file; no key is given twice."""
        return self._parsed(
            "JSON", lambda text: json.loads(text, object_pairs_hook=duplicate_keys_refused)
        )

    def toml(self) -> dict[str, Any]:
        """The table in a TOML file."""
        table: dict[str, Any] = self._parsed("TOML", _toml)
        return table

    def json_or_toml(self) -> Any:
        """The value in the file, which is JSON if its name ends in .json, else TOML."""
        if self.path.suffix == ".json":
            return self.json()
        limit = min(self.limit, MAX_TOML_BYTES)
        return UntrustedFile(self.path, limit, self.error, self.hint, self.label).toml()

    def record(self, kind: type[M]) -> M:
        """The JSON object in the file, checked."""
        from pydantic import ValidationError  # slow to import; most commands read no record

        content = self.bytes()
        try:
            record = kind.model_validate_json(content)
        except ValidationError as error:
            raise self._problem(wrong_fields(error)) from None
        try:
            json.loads(
                content,
                parse_int=_bounded,
                parse_float=_bounded,
                object_pairs_hook=duplicate_keys_refused,
            )
        except (ValueError, CheckpointError) as error:
            raise self._problem(str(error).removesuffix(".")) from None
        return record

    def table(self, kind: type[M]) -> M:
        """The table in the file, TOML or JSON by its name, checked."""
        from pydantic import ValidationError

        value = self.json_or_toml()
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise self._problem(wrong_fields(error)) from None

    def _parsed(self, language: str, parse: Callable[[str], Any]) -> Any:
        try:
            value = parse(self.bytes().decode())
            too_deep = nested_deeper(value, MAX_DEPTH)
        except RecursionError:
            too_deep = True
        except CheckpointError as error:
            raise self._problem(error.message.removesuffix(".")) from None
        except ValueError as error:
            raise self._problem(f"not {language}: {str(error)[:200]}") from None
        if too_deep:
            raise self._problem(f"not {language}: nested more than {MAX_DEPTH} deep")
        return value

    def _problem(self, why: str) -> GemquantError:
        return self.error(f"{self.label or self.path}: {why}.", hint=self.hint)


def hub_repository(folder: Path) -> str | None:
    """Return ``owner/name`` where the folder is a snapshot in a Hub cache, otherwise None."""
    resolved = folder.resolve()
    cache = resolved.parent.parent
    if resolved.parent.name == "snapshots" and cache.name.startswith("models--"):
        return cache.name.removeprefix("models--").replace("--", "/")
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def duplicate_keys_refused(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, as ``object_pairs_hook``; a key given twice is an error that names it."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CheckpointError(f"{key!r} is given twice.")
        result[key] = value
    return result


def nested_deeper(value: object, depth: int) -> bool:
    """Whether lists and mappings are nested more than ``depth`` deep."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def wrong_fields(error: ValidationError, root: str = "the document") -> str:
    """What is wrong in a record, for a message: the first fields, with their places."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or root}: {each['msg']}"
        for each in error.errors(include_url=False)[:_PROBLEMS_SHOWN]
    )


def _bounded(number: str) -> float:
    """A number whose square and products with others fit a float."""
    if not abs(value := float(number)) <= MAX_NUMBER:
        raise ValueError(f"a number beyond ±{MAX_NUMBER:g}: {number[:40]}")
    return value


def _toml(text: str) -> dict[str, Any]:
    if max(line.count(".") for line in text.split("\n")) > _MAX_KEYS_PER_LINE:
        raise RecursionError
    return tomllib.loads(text)
