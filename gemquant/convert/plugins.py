"""Quantizers and exporters by name: those that come along, and plug-ins by entry point.

Names are listed without importing anything; a class is imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, cast

from gemquant.core.protocols import Exporter, Quantizer
from gemquant.errors import UnsupportedError, UsageError

Kind = Literal["quantizer", "exporter"]


@dataclass(frozen=True)
class Plugin:
    """Something that can be imported when it is needed.

    value: ``module:attribute``. package: the distribution that brings it. summary: one line.
    rival: another distribution that brings one of the same name; neither can be used then.
    """

    name: str
    value: str
    package: str
    summary: str
    rival: str | None = None


def _own(name: str, value: str, summary: str = "") -> Plugin:
    return Plugin(name, value, "gemquant", summary)


# Summaries repeat the first docstring line of each quantizer, so that listing them imports nothing;
# a test compares them.
OWN: Mapping[Kind, tuple[Plugin, ...]] = {
    "quantizer": (
        _own(
            "awq",
            "gemquant.quantizers.awq:AWQ",
            "AWQ (activation-aware weight quantization) with GPTQ error compensation.",
        ),
        _own(
            "cast",
            "gemquant.quantizers.cast:Cast",
            "Convert to bfloat16, float16 or float32 without quantizing.",
        ),
        _own(
            "fp4",
            "gemquant.quantizers.bitsandbytes:FP4",
            "bitsandbytes FP4.",
        ),
        _own(
            "gguf",
            "gemquant.quantizers.gguf:KQuant",
            "GGUF for llama.cpp: K-quants, IQ4, Q8_0 and others, several types in one pass.",
        ),
        _own(
            "int8",
            "gemquant.quantizers.bitsandbytes:Int8",
            "LLM.int8() for bitsandbytes.",
        ),
        _own(
            "nf4",
            "gemquant.quantizers.bitsandbytes:NF4",
            "bitsandbytes NF4 (QLoRA's 4-bit NormalFloat).",
        ),
        _own(
            "rtn",
            "gemquant.quantizers.rtn:RoundToNearest",
            "Round to nearest: the baseline.",
        ),
    ),
    "exporter": (
        _own("awq-gemm", "gemquant.formats.awq_gemm:AwqGemm"),
        _own("bitsandbytes", "gemquant.formats.bitsandbytes:BitsAndBytes"),
        _own("compressed-tensors", "gemquant.formats.compressed_tensors:CompressedTensors"),
        _own("gptq", "gemquant.formats.gptq:Gptq"),
        _own("gguf", "gemquant.formats.gguf.exporter:GGUF"),
        _own("metal", "gemquant.formats.metal:Metal"),
        _own("mlx", "gemquant.formats.mlx:MLX"),
        _own("onnx", "gemquant.formats.onnx:Onnx"),
        _own("safetensors", "gemquant.formats.safetensors.plain:PlainSafetensors"),
    ),
}


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """Return every quantizer or exporter by name, sorted; nothing is imported."""
    found = {plugin.name: plugin for plugin in OWN[kind]}
    for entry in entry_points(group=f"gemquant.{kind}s"):
        package = entry.dist.name if entry.dist else "an unknown package"
        if entry.name in found:
            found[entry.name] = dataclasses.replace(found[entry.name], rival=package)
        else:
            summary = f"From the package {package}."
            found[entry.name] = Plugin(entry.name, entry.value, package, summary)
    return dict(sorted(found.items()))


def quantizer_type(name: str) -> type[Quantizer]:
    """Import the quantizer called ``name``; UsageError with suggestions if there is none."""
    cls = _load("quantizer", name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and Quantizer in cls.__mro__):
        raise UnsupportedError(
            f"quantizer {name}: {cls!r} is not a dataclass that subclasses Quantizer.",
            hint="docs/new-quantizer.md shows one.",
        )
    return cast("type[Quantizer]", cls)


def exporter(name: str, options: Mapping[str, Any] | None = None) -> Exporter:
    """Import and make the exporter ``name``; UsageError with suggestions if there is none.

    options: the quantizer's, of which some concern the exporter.
    """
    return cast("Exporter", _load("exporter", name)()).configured(options or {})


def _load(kind: Kind, name: str) -> Any:
    known = plugins(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2) or list(known)
        raise UsageError(f"{name}: no such {kind}.", hint=f"Did you mean {' or '.join(close)}?")
    plugin = known[name]
    if plugin.rival is not None:
        raise UsageError(
            f"{kind} {name}: brought by both {plugin.package} and {plugin.rival}.",
            hint=f"Uninstall one of them: pip uninstall {plugin.rival}",
        )
    module, _, attribute = plugin.value.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"{kind} {name}: {plugin.value} of {plugin.package} cannot be imported: {error}.",
            hint=f"Reinstall or update it: pip install --upgrade {plugin.package}",
        ) from error
    if getattr(found, "name", None) != name:
        raise UnsupportedError(
            f"{kind} {name}: its class calls itself {getattr(found, 'name', None)!r}.",
            hint="The entry point's name and the class attribute `name` must agree.",
        )
    return found
