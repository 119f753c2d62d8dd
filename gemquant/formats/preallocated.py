"""Files of their final size from the start, filled in any order."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from gemquant.errors import OutputError


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
    """Open a file that ``begin`` made in an earlier run; OutputError if it is a different one."""
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
