"""What llama.cpp's quantize records of the importance matrix that it used.

Source: llama.cpp ``tools/quantize/quantize.cpp``.
"""

from __future__ import annotations

from gemquant.formats.gguf.importance import ImportanceMatrix
from gemquant.formats.gguf.values import GgufValue, string, uint32

_LONGEST_BYTES = 127


def importance_keys(matrix: ImportanceMatrix, file_name: str) -> dict[str, GgufValue]:
    """Return the keys ``quantize.imatrix.*``, in upstream's order; they follow all others.

    file_name: of the matrix. Upstream writes the path as it was typed; a bare name tells as much.
    """
    keys = {"quantize.imatrix.file": string(_shortened(file_name))}
    if matrix.datasets:
        keys["quantize.imatrix.dataset"] = string(_shortened(matrix.datasets[0]))
    keys["quantize.imatrix.entries_count"] = uint32(len(matrix.entries))
    if matrix.chunks > 0:
        keys["quantize.imatrix.chunks_count"] = uint32(matrix.chunks)
    return keys


def _shortened(text: str) -> str:
    """The bytes that upstream's field of fixed length holds, without half a character."""
    return text.encode()[:_LONGEST_BYTES].decode(errors="ignore")
