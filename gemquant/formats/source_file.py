"""A weight file that is read by position: one that shrinks meanwhile is an error, and no signal.

A mapped file would cost no copy, but every page that is gone ends the process with SIGBUS.
"""

from __future__ import annotations

import io
import math
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gemquant.core.untrusted import open_regular
from gemquant.errors import SourceLostError

_CHUNK_BYTES = 1 << 24


class SourceFile:
    """An open regular file; OSError where it cannot be opened. size: when it was opened."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        self.path, self.size = path, os.fstat(descriptor).st_size
        self._file = io.FileIO(descriptor, closefd=False)
        self._lock = threading.Lock()

    def octets(self, begin: int, count: int) -> Tensor:
        """Bytes, (count,) uint8. Raises SourceLostError where the file has them no longer."""
        result = torch.empty(count, dtype=torch.uint8)
        view = result.numpy().data
        try:
            with self._lock:
                self._file.seek(begin)
                while view and (read := self._file.readinto(view)):
                    view = view[read:]
        except OSError as error:
            raise SourceLostError(f"{self.path}: cannot be read: {error.strerror}.") from error
        if view:
            raise SourceLostError(
                f"{self.path}: was {self.size} bytes long when it was opened, and ends before byte "
                f"{begin + count} now.",
                hint="Put the whole file back.",
            )
        return result

    def tensor(self, begin: int, shape: Sequence[int], stored: torch.dtype) -> Tensor:
        """The tensor of a type that begins at a byte."""
        return (
            self.octets(begin, math.prod(shape) * stored.itemsize)
            .view(stored)
            .reshape(tuple(shape))
        )

    def converted(
        self, begin: int, shape: Sequence[int], stored: torch.dtype, dtype: torch.dtype
    ) -> Tensor:
        """The tensor in another type; a part at a time, so that it is in memory once."""
        if stored == dtype:
            return self.tensor(begin, shape, stored)
        result = torch.empty(math.prod(shape), dtype=dtype)
        for part in result.split(_CHUNK_BYTES // stored.itemsize):
            part.copy_(self.tensor(begin, part.shape, stored))
            begin += part.numel() * stored.itemsize
        return result.reshape(tuple(shape))
