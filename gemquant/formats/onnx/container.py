"""The container ``onnx``: written by onnxruntime-genai's builder, only read by gemquant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from gemquant.core.artifact import MANIFEST_FILE, read_manifest, structure_problems
from gemquant.core.protocols import ArtifactHeader, Container, Exporter, Writer
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, refuse
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.onnx.graph import OnnxGraph
from gemquant.formats.onnx.weights import OnnxWeights
from gemquant.models.config import text_config


@dataclass(frozen=True)
class Onnx(Exporter):
    """Exporter that only reads; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "onnx"

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """The types that the builder stores for a CPU."""
        return Container(torch.float32, torch.float32)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:  # noqa: ARG002
        """The builder decides the codes, so that no quantizer here fits."""
        return [_only_read()]

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:  # noqa: ARG002
        """Not known before the builder has written them."""
        raise _only_read()

    def create(
        self,
        folder: Path,  # noqa: ARG002
        header: ArtifactHeader,  # noqa: ARG002
        finished: Collection[str] | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Writer]:
        """Refuse."""
        raise _only_read()

    def open(self, folder: Path) -> OnnxWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        path = folder / "config.json"
        try:
            config = text_config(read_json_object(path))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
        except GemquantError as error:
            raise ArtifactError(error.message) from None
        weights = OnnxWeights(config, OnnxGraph.open(folder))
        if (folder / MANIFEST_FILE).exists():
            refuse(structure_problems(read_manifest(folder), weights.layout))
        return weights


def _only_read() -> UnsupportedError:
    return UnsupportedError(
        "onnx: onnxruntime-genai's builder writes this container and decides its codes.",
        hint="Run: gemquant onnx MODEL",
    )
