"""Kernels touch their rows and nothing else: a page without access follows every buffer.

Weights are zeros, then NaN.
"""

import subprocess
import sys

import pytest

from gemquant.numerics import native

# In a process of its own, which a kernel that goes too far ends.
PROGRAM = """
import ctypes, mmap
from gemquant.numerics import native
from gemquant.numerics.ggml_types import TYPES

areas = []


def before_a_guard(size):
    page = mmap.PAGESIZE
    pages = -(-size // page)
    areas.append(mmap.mmap(-1, (pages + 1) * page))
    guard = ctypes.addressof(ctypes.c_char.from_buffer(areas[-1])) + pages * page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    return guard - size


for kind in TYPES.values():
    name = f"gq_quantize_{kind.name.lower()}"
    for rows, columns in [(1, 256), (3, 768), (17, 256)] if not kind.is_float else []:
        for importance in (None, before_a_guard(4 * columns)):
            weights = before_a_guard(4 * rows * columns)
            blocks = before_a_guard(rows * kind.row_bytes(columns))
            native.call(name, weights, blocks, rows, columns, importance)
            ctypes.memset(weights, 0xFF, 4 * rows * columns)  # NaN
            native.call(name, weights, blocks, rows, columns, importance)
            print(kind.name, rows, columns, importance is not None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="guard pages are made with mprotect")
def test_kernels_stay_within_their_buffers():
    if native.library() is None:
        pytest.skip(native.status().reason)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 12 * 6, "")
