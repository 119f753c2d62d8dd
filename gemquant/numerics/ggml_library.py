"""ggml's own functions, from the shared library in the package xllamacpp.

Only functions over plain numbers and pointers are called; their signatures have not changed since
ggml introduced them, and no structure is accessed. The extra ``gguf`` installs xllamacpp.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "xllamacpp"


@cache
def ggml() -> ctypes.CDLL | None:
    """The library, or None where it is not installed or does not load."""
    for path in shared_objects():
        try:
            library = ctypes.CDLL(str(path))
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
            library.ggml_quantize_chunk.argtypes = [
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_void_p,
            ]
        except (AttributeError, OSError):
            continue
        return library
    return None


def shared_objects() -> Sequence[Path]:
    """The package's shared libraries, found without importing it; none where it is not installed.

    >>> {path.suffix for path in shared_objects()} <= {".so", ".pyd"}
    True
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return [
        path
        for folder in folders or ()
        for path in sorted(Path(folder).glob("xllamacpp*"))
        if path.suffix in {".so", ".pyd"}
    ]


def version() -> str | None:
    """Version of the package that carries ggml, or None."""
    return metadata.version(PACKAGE) if ggml() is not None else None
