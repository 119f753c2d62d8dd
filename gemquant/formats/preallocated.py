"""Files of their final size from the start, filled in any order."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gemquant.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class FileLayout:
    """One file before any data. head: its first bytes. offsets: tensor → where its data begins."""

    head: bytes
    offsets: Mapping[str, int]
    size: int


def grouped(
    items: Sequence[T], size_of: Callable[[T], int], max_bytes: int | None
) -> list[list[T]]:
    """Divide items, in their order, into groups of at most ``max_bytes``; None for one group.

    An item larger than that has a group to itself.
    """
    groups: list[list[T]] = [[]]
    used = 0
    for item in items:
        size = size_of(item)
        if max_bytes is not None and used + size > max_bytes and groups[-1]:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups


class PreallocatedFiles:
    """The files of one model, whose tensors are stored in any order.

    resumed: the files are there from an earlier run; otherwise they are new. A full or unwritable
    disk is an OutputError.
    """

    def __init__(self, layouts: Mapping[Path, FileLayout], *, resumed: bool) -> None:
        self._places = {
            name: (path, offset)
            for path, layout in layouts.items()
            for name, offset in layout.offsets.items()
        }
        self._files: dict[Path, FileIO] = {}
        with ExitStack() as stack:
            for path, layout in layouts.items():
                opened = (reopen if resumed else begin)(path, layout.head, layout.size)
                self._files[path] = stack.enter_context(opened)
            self._stack = stack.pop_all()

    def store(self, name: str, offset: int, octets: Tensor) -> None:
        """Write bytes (uint8, contiguous) of a tensor, ``offset`` bytes after its beginning."""
        path, first = self._places[name]
        with reported(path):
            self._files[path].seek(first + offset)
            write_all(self._files[path], octets.view(-1).numpy().data)

    def flush(self) -> None:
        """Make what has been stored durable."""
        for path, file in self._files.items():
            with reported(path):
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files, finished or not."""
        self._files.clear()
        self._stack.close()


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the file and the next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Free some space, or choose another place with -o." if full else None,
        ) from error


def allocate(descriptor: int, size: int) -> None:
    """Reserve the whole file, so that a full disk shows before the work."""
    os.truncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            # Some file systems cannot reserve; a sparse file serves there.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise


def begin(path: Path, head: bytes, size: int) -> FileIO:
    """Open a new file of its final size that begins with ``head``."""
    with reported(path):
        file = path.open("xb", buffering=0)
        try:
            allocate(file.fileno(), size)
            write_all(file, head)
        except BaseException:
            file.close()
            raise
    return file


def reopen(path: Path, head: bytes, size: int) -> FileIO:
    """Open a file that ``begin`` created in an earlier run; OutputError if it differs."""
    with reported(path):
        file = path.open("r+b", buffering=0)
        if path.stat().st_size == size and file.read(len(head)) == head:
            return file
        file.close()
    raise OutputError(
        f"{path} is not the file that the interrupted run was writing.",
        hint="Start over with --restart.",
    )


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of it, however often the system stops short."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
