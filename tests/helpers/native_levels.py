"""The libraries of our kernels, each level by itself."""

import ctypes

from gemquant.numerics.native import build


def load(level):
    """The library of a level and None, or None and why there is none here."""
    plainest = build.FOLDER / build.library_name(next(iter(build.levels())))
    path = build.FOLDER / build.library_name(level)
    if not path.is_file():
        return None, f"{path.name} is not built"
    if "-v" in level and int(level[-1]) > ctypes.CDLL(str(plainest)).gq_processor_level():
        return None, f"this processor does not run {level}"
    return ctypes.CDLL(str(path)), None
