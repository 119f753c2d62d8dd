"""The runtimes that can be measured, one module each with its ``RUNTIME``.

To add one, write a module whose ``RUNTIME`` is a ``measure.bench.engine.Runtime``, and name it
here with the containers that it loads.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from gemquant.measure.bench.engine import Runtime


@dataclass(frozen=True)
class Entry:
    """Where a runtime is, and the containers that it loads."""

    module: str
    containers: frozenset[str]


RUNTIMES: Mapping[str, Entry] = {
    "llama.cpp": Entry("gemquant.measure.bench.runtimes.llamacpp", frozenset({"gguf"})),
    "mlx-lm": Entry("gemquant.measure.bench.runtimes.mlx", frozenset({"mlx"})),
    "onnxruntime-genai": Entry("gemquant.measure.bench.runtimes.onnx", frozenset({"onnx"})),
    "transformers": Entry(
        "gemquant.measure.bench.runtimes.transformers",
        frozenset({"awq-gemm", "bitsandbytes", "compressed-tensors", "metal", "safetensors"}),
    ),
}


def runtime(name: str) -> Runtime:
    """Import a runtime's module."""
    return cast("Runtime", importlib.import_module(RUNTIMES[name].module).RUNTIME)


def runtimes_of(container: str) -> Sequence[str]:
    """Names of the runtimes that load a container."""
    return [name for name, entry in RUNTIMES.items() if container in entry.containers]
