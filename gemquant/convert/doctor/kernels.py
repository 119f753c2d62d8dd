"""Which kernels quantize: ours in C, or their slower stand-ins."""

from __future__ import annotations

from gemquant.core.finding import Finding
from gemquant.numerics import native
from gemquant.numerics.ggml.library import version

PURPOSE = "fast quantization; without it everything works, slower"


def kernels_in_use() -> list[Finding]:
    """Our kernels, and ggml's."""
    status = native.status()
    if status.level is not None:
        ours = Finding("kernels", "native", "ok", f"built for {status.level}", PURPOSE)
    else:
        reason = str(status.reason)
        ours = Finding("kernels", "native", "warning", reason, PURPOSE, native.REBUILD)
    purpose = "GGUF types that our kernels do not cover"
    found = version()
    if found is not None:
        return [ours, Finding("kernels", "ggml", "ok", f"of xllamacpp {found}", purpose)]
    missing = "xllamacpp missing, or not loadable here"
    command = "pip install 'gemquant[gguf]'"
    return [ours, Finding("kernels", "ggml", "warning", missing, purpose, command)]
