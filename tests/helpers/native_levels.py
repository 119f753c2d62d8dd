"""Our kernels at each level of the processor, and what there is without them."""

import ctypes
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from gemquant.numerics import native
from gemquant.numerics.native import build

LEVELS = [*build.levels(), "no kernels"]


def load(level):
    """The library of a level and None, or None and why there is none here."""
    plainest = build.FOLDER / build.library_name(next(iter(build.levels())))
    path = build.FOLDER / build.library_name(level)
    if not path.is_file():
        return None, f"{path.name} is not built"
    if "-v" in level and int(level[-1]) > ctypes.CDLL(str(plainest)).gq_processor_level():
        return None, f"this processor does not run {level}"
    return ctypes.CDLL(str(path)), None


@contextmanager
def at_level(level):
    """Compute with the kernels of a level, or without any; skip a test where it has none."""
    library, reason = (None, None) if level == "no kernels" else load(level)
    if reason is not None:
        pytest.skip(reason)
    with patch.object(native, "library", lambda: library):
        yield
