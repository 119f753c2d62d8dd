"""The importance matrix of a text: what a trace of it says of every linear's inputs."""

from __future__ import annotations

from gemquant.calibration.trace import Trace
from gemquant.calibration.windows import TokenWindows
from gemquant.core.progress import Progress
from gemquant.formats.gguf.importance import ImportanceEntry, ImportanceMatrix
from gemquant.formats.gguf.names import to_gguf
from gemquant.numerics.precision import fast_products


@fast_products()
def computed_importance(
    trace: Trace, windows: TokenWindows, generation: str, progress: Progress
) -> ImportanceMatrix:
    """Trace every layer and keep the sums of squares alone.

    windows: what the trace reads. generation: the model type, for llama.cpp's names.
    """
    entries: dict[str, ImportanceEntry] = {}
    progress.start("tracing layers", trace.layers)
    for block in trace.blocks():
        for linear in block.structure.linears:
            name = to_gguf(f"{block.prefix}{linear}.weight", generation)
            entries[name] = ImportanceEntry.of(block.statistics[linear])
        progress.advance("tracing layers")
    return ImportanceMatrix(
        entries,
        datasets=(windows.name,),
        chunks=windows.ids.shape[0],
        chunk_tokens=windows.ids.shape[1],
    )
