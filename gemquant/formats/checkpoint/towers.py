"""What a multimodal checkpoint has besides its text model: towers, projectors, processor files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, listed
from gemquant.formats.checkpoint.files import PROCESSOR_FILES, contained
from gemquant.formats.checkpoint.source import require_finite, unwrapped
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.models.architecture import architecture_of

Shapes = Mapping[str, tuple[int, ...]]

_MAX_PROCESSOR_BYTES = 10_000_000
_TEXT_ONLY = "Convert the text model alone: --text-only"


@dataclass(frozen=True, eq=False)
class Towers:
    """Tensors that pass through unchanged, by their published names, and files of processors.

    config: the whole ``config.json``. text: the text model's configuration.
    processor_files: content by name; empty where the folder has none.
    """

    config: Mapping[str, Any]
    text: Mapping[str, Any]
    processor_files: Mapping[str, bytes]
    _files: SafetensorsFiles = field(repr=False)
    _stored: Mapping[str, str] = field(repr=False)

    def names(self) -> Sequence[str]:
        """Names of all tensors, in the order of the files."""
        return list(self._stored)

    def by_file(self) -> Sequence[str]:
        """Names of all tensors, file by file and there by the stored names."""
        return sorted(
            self._stored, key=lambda name: (self._files.file(stored := self._stored[name]), stored)
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        return self._files.shapes[self._stored[name]]

    def stored_dtype(self, name: str) -> torch.dtype:
        """The type in the file."""
        return self._files.stored_dtype(self._stored[name])

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored type; CheckpointError where it holds NaN or Inf.

        Limits of clipped linears, which are scalars, may be infinite.
        """
        stored = self._stored[name]
        tensor = self._files.tensor(stored)
        if tensor.dim() and tensor.is_floating_point():
            require_finite(tensor, stored)
        return tensor

    def problems(self) -> list[GemquantError]:
        """What forbids passing them through."""
        try:
            expected = architecture_of(self.text).tower_shapes(self.config, self.text)
        except CheckpointError as error:
            return [CheckpointError(error.message, hint=_TEXT_ONLY)]
        return [*self._missing(expected), *self._unread(expected)]

    def _missing(self, expected: Shapes) -> list[GemquantError]:
        problems: list[GemquantError] = []
        if not self.processor_files:
            problems.append(
                CheckpointError(
                    f"the checkpoint has towers and none of {', '.join(PROCESSOR_FILES)}: no image "
                    "or sound could be given to the artifact.",
                    hint=f"Copy them from the model's page. {_TEXT_ONLY}",
                )
            )
        if missing := [name for name in expected if name not in self._stored]:
            problems.append(
                CheckpointError(
                    f"{len(missing)} tensors of towers are missing: {listed(missing, 8)}.",
                    hint=f"Download the checkpoint again. {_TEXT_ONLY}",
                )
            )
        problems += [
            CheckpointError(
                f"{self._stored[name]}: shape {self.shape(name)}, and config.json implies {shape}.",
                hint=_TEXT_ONLY,
            )
            for name, shape in expected.items()
            if name in self._stored and self.shape(name) != shape
        ]
        return problems

    def _unread(self, expected: Shapes) -> list[GemquantError]:
        unknown = [self._stored[name] for name in self._stored if name not in expected]
        if not unknown:
            return []
        return [
            UnsupportedError(
                f"{len(unknown)} tensors are not part of the towers that config.json describes: "
                f"{listed(unknown, 8)}.",
                hint=_TEXT_ONLY,
            )
        ]


def read_towers(
    folder: Path, raw: Mapping[str, Any], config: Mapping[str, Any], files: SafetensorsFiles
) -> Towers | None:
    """The towers of a folder; None for a text model.

    raw: its config.json. config: the text model's configuration.
    """
    architecture = architecture_of(config)
    if not any(raw.get(part) for part in ("vision_config", "audio_config")):
        return None
    named: dict[str, str] = {}
    for stored in files.shapes:
        if (name := architecture.tower_name(unwrapped(stored))) is not None:
            if name in named:
                raise CheckpointError(f"{named[name]} and {stored} are the same tensor.")
            named[name] = stored
    if not named:
        return None
    return Towers(raw, config, _processor_files(folder), files, named)


def _processor_files(folder: Path) -> dict[str, bytes]:
    there = [name for name in PROCESSOR_FILES if (folder / name).exists()]
    contents = {}
    for name in there:
        file = UntrustedFile(contained(folder, name), _MAX_PROCESSOR_BYTES, CheckpointError)
        if not isinstance(file.json(), dict):
            raise CheckpointError(f"{file.path}: not a JSON object.")
        contents[name] = file.bytes()
    return contents
