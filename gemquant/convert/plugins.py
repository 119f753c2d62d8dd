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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gemquant.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact
    from gemquant.core.protocols import Exporter, Quantizer, Weights

Kind = Literal["quantizer", "exporter"]


@dataclass(frozen=True)
class Plugin:
    """Something that can be imported when it is needed.

    value: ``module:attribute``. package: the distribution that brings it.
    rival: another distribution that brings one of the same name; neither can be used then.
    """

    name: str
    value: str
    package: str = "gemquant"
    rival: str | None = None

    @property
    def summary(self) -> str:
        """One line: of gemquant's own the first of the docstring, read without an import."""
        if self.package != "gemquant":
            return f"From the package {self.package}."
        module, _, attribute = self.value.partition(":")
        return first_line(module, f"\nclass {attribute}(", '"""')


def first_line(module: str, *markers: str) -> str:
    """Read the line that follows these texts in the source of one of gemquant's modules.

    Listing commands and quantizers this way needs no import. Empty if a marker is missing.
    """
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    rest = path.read_text(encoding="utf-8")
    for marker in markers:
        rest = rest.partition(marker)[2]
    return rest.partition("\n")[0].removesuffix('"""')


OWN: Mapping[Kind, tuple[Plugin, ...]] = {
    "quantizer": (
        Plugin("awq", "gemquant.quantizers.awq:AWQ"),
        Plugin("cast", "gemquant.quantizers.cast:Cast"),
        Plugin("fp4", "gemquant.quantizers.bitsandbytes:FP4"),
        Plugin("gguf", "gemquant.quantizers.gguf:KQuant"),
        Plugin("int8", "gemquant.quantizers.bitsandbytes:Int8"),
        Plugin("nf4", "gemquant.quantizers.bitsandbytes:NF4"),
        Plugin("rtn", "gemquant.quantizers.rtn:RoundToNearest"),
    ),
    "exporter": (
        Plugin("awq-gemm", "gemquant.formats.awq_gemm:AwqGemm"),
        Plugin("bitsandbytes", "gemquant.formats.bitsandbytes:BitsAndBytes"),
        Plugin("compressed-tensors", "gemquant.formats.compressed_tensors:CompressedTensors"),
        Plugin("gptq", "gemquant.formats.gptq:Gptq"),
        Plugin("gguf", "gemquant.formats.gguf.exporter:GGUF"),
        Plugin("metal", "gemquant.formats.metal:Metal"),
        Plugin("mlx", "gemquant.formats.mlx:MLX"),
        Plugin("onnx", "gemquant.formats.onnx:Onnx"),
        Plugin("safetensors", "gemquant.formats.plain_safetensors:PlainSafetensors"),
    ),
}


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """Return every quantizer or exporter by name, sorted; nothing is imported."""
    known = {plugin.name: plugin for plugin in OWN[kind]}
    for entry in entry_points(group=f"gemquant.{kind}s"):
        package = entry.dist.name if entry.dist else "an unknown package"
        if entry.name in known:
            known[entry.name] = dataclasses.replace(known[entry.name], rival=package)
        else:
            known[entry.name] = Plugin(entry.name, entry.value, package)
    return dict(sorted(known.items()))


def quantizer_type(name: str) -> type[Quantizer]:
    """Import the quantizer called ``name``; UsageError with suggestions if there is none."""
    from gemquant.core.protocols import Quantizer

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


def open_weights(artifact: Artifact) -> Weights:
    """Open an artifact's weights with the exporter of its container."""
    return exporter(artifact.manifest.container).open(artifact.path)


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
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"{kind} {name}: {plugin.value} of {plugin.package} cannot be imported: {error}.",
            hint=f"Reinstall or update it: pip install --upgrade {plugin.package}",
        ) from error
    if getattr(cls, "name", None) != name:
        raise UnsupportedError(
            f"{kind} {name}: its class calls itself {getattr(cls, 'name', None)!r}.",
            hint="The entry point's name and the class attribute `name` must agree.",
        )
    return cls
